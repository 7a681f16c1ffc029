/* net/net.h - the host end of a network card: frames out, frames in.
 *
 * A peer is one thing a NIC can be plugged into (user-mode NAT, later tap and switch).  The NIC
 * sends with net_send from any thread, with its own lock held if it likes: a peer never calls back
 * from inside.  It gets frames by its receive callback, which runs on a thread of the peer's own,
 * one frame at a time, with no lock held.  Frames are whole Ethernet frames without FCS, of at most
 * NET_MAX_FRAME bytes, and their checksums are right: nothing is offloaded. */
#pragma once

#include "base/types.h"

struct error;
struct evloop;
struct net;

enum { NET_MAX_FRAME = 1514, NET_MIN_FRAME = 14 };

struct net_ops {
	const char *name;
	void (*send)(struct net *n, const void *frame, size_t len); /* copies; drops what is odd */
	void (*rx_ready)(struct net *n); /* the NIC has room again after refusing; any thread */
	/* The NIC goes away: when it returns no callback is running, and none comes until one is
	 * set again and that NIC sends.  Not from a callback, nor with a lock held that receive
	 * takes; the same goes for destroy.  NULL: this peer has no thread that calls back. */
	void (*detach)(struct net *n);
	void (*destroy)(struct net *n);
};

struct net {
	const struct net_ops *ops;
	/* Set by the NIC before its first net_send or rx_ready; nothing is received before that.
	 * False: no room now, the peer keeps the frame (or drops it) and waits for rx_ready. */
	bool (*receive)(void *opaque, const void *frame, size_t len);
	void *opaque;
};

static inline void net_send(struct net *n, const void *frame, size_t len)
{
	n->ops->send(n, frame, len);
}

static inline void net_rx_ready(struct net *n)
{
	n->ops->rx_ready(n);
}

static inline void net_detach(struct net *n)
{
	if (n->ops->detach)
		n->ops->detach(n);
}

static inline void net_destroy(struct net *n)
{
	if (n)
		n->ops->destroy(n);
}

/* User-mode NAT by libslirp, IPv4: guest 10.0.2.15 (by DHCP), gateway 10.0.2.2, which is also the
 * host's loopback, DNS 10.0.2.3.  options: "" or "forward=tcp:2222:22,forward=udp:HOST:GUEST"; the
 * host side binds 127.0.0.1 unless it is "tcp:ADDR:HOST:GUEST".  Served by a thread of its own;
 * `loop` is not used. */
int net_user_create(struct net **out, const char *options, struct evloop *loop, struct error *err);
