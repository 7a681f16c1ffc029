/* fake_chr.h - a chardev a test holds the other end of.  One at a time. */
#pragma once

#include "console/chardev.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

static struct fake_chr {
	struct chr_handlers h;
	pthread_mutex_t lock; /* guards the rest */
	char out[65536];
	size_t len, room; /* room: how much more will be accepted */
	unsigned accepts;
} fake_chr = {.lock = PTHREAD_MUTEX_INITIALIZER, .room = sizeof(fake_chr.out)};

#define FAKE_CHR ((struct chardev *)&fake_chr)

void chr_set_handlers(struct chardev *c, const struct chr_handlers *h)
{
	fake_chr.h = h ? *h : (struct chr_handlers){0};
}

void chr_accept_input(struct chardev *c)
{
	pthread_mutex_lock(&fake_chr.lock);
	fake_chr.accepts++;
	pthread_mutex_unlock(&fake_chr.lock);
}

size_t chr_write(struct chardev *c, const uint8_t *buf, size_t len)
{
	pthread_mutex_lock(&fake_chr.lock);
	if (len > fake_chr.room)
		len = fake_chr.room;
	memcpy(fake_chr.out + fake_chr.len, buf, len);
	fake_chr.len += len;
	fake_chr.room -= len;
	pthread_mutex_unlock(&fake_chr.lock);
	return len;
}

/* As the event loop does: never more than the device said it takes.  Returns how much went in. */
static inline size_t fake_chr_type(const char *s)
{
	size_t room = fake_chr.h.can_receive(fake_chr.h.opaque), n = strlen(s);

	n = n < room ? n : room;
	if (n)
		fake_chr.h.receive(fake_chr.h.opaque, (const uint8_t *)s, n);
	return n;
}

static inline void fake_chr_set_room(size_t room)
{
	pthread_mutex_lock(&fake_chr.lock);
	fake_chr.room = room;
	pthread_mutex_unlock(&fake_chr.lock);
}

static inline size_t fake_chr_len(void)
{
	size_t n;

	pthread_mutex_lock(&fake_chr.lock);
	n = fake_chr.len;
	pthread_mutex_unlock(&fake_chr.lock);
	return n;
}

static inline unsigned fake_chr_accepts(void)
{
	unsigned n;

	pthread_mutex_lock(&fake_chr.lock);
	n = fake_chr.accepts;
	pthread_mutex_unlock(&fake_chr.lock);
	return n;
}

static inline bool fake_chr_wait(size_t len)
{
	for (int i = 0; i < 2500 && fake_chr_len() < len; i++)
		usleep(200);
	return fake_chr_len() >= len;
}
