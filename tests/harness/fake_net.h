/* fake_net.h - a network peer that records what the card sends.  One at a time. */
#pragma once

#include "net/net.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

static struct fake_net {
	struct net net;
	pthread_mutex_t lock; /* guards the rest */
	uint8_t last[65536];
	size_t last_len;
	unsigned nr_sent, nr_ready;
} fake_net;

static void fake_net_send(struct net *n, const void *frame, size_t len)
{
	pthread_mutex_lock(&fake_net.lock);
	memcpy(fake_net.last, frame, len);
	fake_net.last_len = len;
	fake_net.nr_sent++;
	pthread_mutex_unlock(&fake_net.lock);
}

static void fake_net_ready(struct net *n)
{
	pthread_mutex_lock(&fake_net.lock);
	fake_net.nr_ready++;
	pthread_mutex_unlock(&fake_net.lock);
}

static const struct net_ops fake_net_ops = {
	.name = "fake", .send = fake_net_send, .rx_ready = fake_net_ready};

static inline struct net *fake_net_init(void)
{
	memset(&fake_net, 0, sizeof(fake_net));
	pthread_mutex_init(&fake_net.lock, NULL);
	fake_net.net.ops = &fake_net_ops;
	return &fake_net.net;
}

static inline unsigned fake_net_count(const unsigned *what)
{
	unsigned n;

	pthread_mutex_lock(&fake_net.lock);
	n = *what;
	pthread_mutex_unlock(&fake_net.lock);
	return n;
}

static inline bool fake_net_wait(const unsigned *what, unsigned n)
{
	for (int i = 0; i < 2500 && fake_net_count(what) < n; i++)
		usleep(200);
	return fake_net_count(what) >= n;
}
