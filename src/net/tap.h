/* net/tap.h - a tap interface of the host as the host end of a network card.
 *
 * tap_open gives a descriptor of it, which either becomes a struct net, whose frames this process
 * carries, or is handed to the kernel's vhost-net.  Errors are -errno with a sentence that says
 * what to do on the host.  Any thread. */
#pragma once

#include "base/types.h"

struct error;
struct net;

/* name: an interface that exists, "" = a new one, which goes with the descriptor (that takes
 * CAP_NET_ADMIN).  vnet_header: each frame has a virtio header before it. */
int tap_open(int *fd, const char *name, bool vnet_header, struct error *err);

/* fd is taken, also on failure; it was opened without headers. */
int net_tap_create(struct net **out, int fd, struct error *err);
