/* The debug console port.  It holds no state between accesses, so there is none to save. */
#include "devices/debug/debugcon.h"

#include "base/error.h"
#include "bus/bus.h"
#include "console/chardev.h"

#include <errno.h>
#include <stdlib.h>

enum { DETECT = 0xe9 };

struct debugcon {
	struct debugcon_config cfg;
	struct io_region *region;
};

static uint64_t port_read(void *opaque, uint64_t off, unsigned size)
{
	return DETECT;
}

static void port_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct debugcon *d = opaque;
	uint8_t byte = value;

	chr_write(d->cfg.chr, &byte, 1);
}

static const struct io_ops ops = {port_read, port_write, 1};

int debugcon_create(struct debugcon **out, const struct debugcon_config *cfg, struct error *err)
{
	struct debugcon *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return err_set(err, ENOMEM, "debug console: out of memory");
	d->cfg = *cfg;
	r = bus_add_pio(cfg->bus, cfg->port, 1, &ops, d, "debugcon", &d->region, err);
	if (r < 0) {
		free(d);
		return err_wrap(err, r, "debug console");
	}
	*out = d;
	return 0;
}

void debugcon_destroy(struct debugcon *d)
{
	if (!d)
		return;
	bus_remove(d->cfg.bus, d->region);
	free(d);
}
