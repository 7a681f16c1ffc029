/* vm/save_config.c - see save_config.h. */
#include "vm/save_config.h"

#include "state/state.h"

#include <ctype.h>
#include <string.h>

static void text(struct state *s, const char *name, char *p, size_t len)
{
	size_t n;

	state_bytes(s, name, p, len);
	n = strnlen(p, len);
	for (size_t i = 0; i < n; i++)
		state_check(s, isprint((unsigned char)p[i]), "a name that cannot be printed");
	state_check(s, n < len, "a name without an end");
}

static void disk(struct state *s, struct saved_disk *d)
{
	state_enter(s, "disk", 1);
	text(s, "file", d->file, sizeof(d->file));
	text(s, "format", d->format, sizeof(d->format));
	state_u64(s, "size", &d->size);
	state_u32(s, "block_size", &d->block_size);
	state_bool(s, "readonly", &d->readonly);
	state_bool(s, "can_discard", &d->can_discard);
	state_bool(s, "can_zero", &d->can_zero);
	state_check(s, !strchr(d->file, '/') && strcmp(d->file, "..") && strcmp(d->file, "."),
		    "a disk's name with a directory");
	state_leave(s);
}

static void board(struct state *s, struct saved_config *c)
{
	state_u32(s, "cpus", &c->cpus);
	state_u64(s, "memory", &c->memory);
	state_u64(s, "tsc_khz", &c->tsc_khz);
	state_u32(s, "nr_serials", &c->nr_serials);
	state_u32(s, "nr_disks", &c->nr_disks);
	state_u32(s, "nr_nets", &c->nr_nets);
	state_bool(s, "micro", &c->micro);
	state_bool(s, "console", &c->console);
	state_bool(s, "testdev", &c->testdev);
	state_bool(s, "debugcon", &c->debugcon);
	state_bool(s, "has_exit_port", &c->has_exit_port);
	state_u16(s, "exit_port", &c->exit_port);
	state_check(s, c->cpus >= 1 && c->cpus <= VM_MAX_CPUS, "number of CPUs");
	state_check(s, c->memory >= 2 * MiB && c->memory <= 4096 * GiB && !(c->memory % MiB),
		    "size of memory");
	state_check(s, c->tsc_khz >= 1000 && c->tsc_khz <= 100000000, "rate of the TSC");
	state_check(s,
		    c->nr_serials <= VM_MAX_SERIALS && c->nr_disks <= VM_MAX_DISKS &&
			    c->nr_nets <= VM_MAX_NETS,
		    "number of devices");
}

void saved_config_state(struct state *s, struct saved_config *c)
{
	state_enter(s, "config", 1);
	state_u64(s, "when_ns", &c->when_ns);
	text(s, "version", c->version, sizeof(c->version));
	text(s, "engine", c->engine, sizeof(c->engine));
	board(s, c);
	for (uint32_t i = 0; i < c->nr_disks && !s->failed; i++)
		disk(s, &c->disk[i]);
	cpu_model_state(s, &c->model);
	state_leave(s);
}
