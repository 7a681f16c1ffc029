/* The exit port.  It holds no state between accesses, so there is none to save. */
#include "devices/debug/exitport.h"

#include "base/error.h"
#include "bus/bus.h"

#include <errno.h>
#include <stdlib.h>

enum { NR_PORTS = 4 };

struct exitport {
	struct exitport_config cfg;
	struct io_region *region;
};

static uint64_t port_read(void *opaque, uint64_t off, unsigned size)
{
	return 0;
}

static void port_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct exitport *e = opaque;

	e->cfg.exit(e->cfg.opaque, (int)((uint32_t)value << 1 | 1));
}

static const struct io_ops ops = {port_read, port_write, 4};

int exitport_create(struct exitport **out, const struct exitport_config *cfg, struct error *err)
{
	struct exitport *e = calloc(1, sizeof(*e));
	int r;

	if (!e)
		return err_set(err, ENOMEM, "exit port: out of memory");
	e->cfg = *cfg;
	r = bus_add_pio(cfg->bus, cfg->port, NR_PORTS, &ops, e, "exitport", &e->region, err);
	if (r < 0) {
		free(e);
		return err_wrap(err, r, "exit port");
	}
	*out = e;
	return 0;
}

void exitport_destroy(struct exitport *e)
{
	if (!e)
		return;
	bus_remove(e->cfg.bus, e->region);
	free(e);
}
