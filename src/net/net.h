/* net/net.h - the host end of a network card: frames out, frames in.
 *
 * A peer is one thing a NIC can be plugged into (user-mode NAT, later tap and switch).  The NIC
 * sends with net_send from any thread and gets frames by its receive callback, which runs on the
 * VM's event loop.  Frames are whole Ethernet frames without FCS. */
#pragma once

#include "base/types.h"

struct error;
struct evloop;
struct net;

struct net_ops {
	const char *name;
	void (*send)(struct net *n, const void *frame, size_t len); /* copies */
	void (*rx_ready)(struct net *n); /* the NIC has room again after refusing a frame */
	void (*destroy)(struct net *n);
};

struct net {
	const struct net_ops *ops;
	/* Set by the NIC before traffic flows.  False: no room now, the peer keeps the frame (or
	 * drops it) and waits for rx_ready. */
	bool (*receive)(void *opaque, const void *frame, size_t len);
	void *opaque;
};

static inline void net_send(struct net *n, const void *frame, size_t len)
{
	n->ops->send(n, frame, len);
}

/* User-mode NAT by libslirp: guest 10.0.2.15, gateway and host 10.0.2.2, DNS 10.0.2.3.
 * options: "" or "forward=tcp:2222:22,forward=udp:HOST:GUEST" (host side binds 127.0.0.1 unless
 * "tcp:ADDR:PORT:GUEST").  Created on, and served by, `loop`. */
int net_user_create(struct net **out, const char *options, struct evloop *loop, struct error *err);
