/* vm/resume.c - a VM from a file; see save.h. */
#include "base/error.h"
#include "block/blk.h"
#include "devices/virtio/vhost_blk.h"
#include "machine/machine.h"
#include "state/stream.h"
#include "vm/save.h"
#include "vm/save_config.h"
#include "vm/save_state.h"
#include "vm/savefile.h"
#include "vm/vm_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct vm_saved {
	char *path;
	struct save_reader *file;
	struct saved_config config;
	char *disk_path[VM_MAX_DISKS]; /* of those looked for beside the file */
	char summary[128];
};

/* ---- the state ---- */

/* The CPUs first: what comes after raises their interrupt lines. */
static void cpu_state(struct state *s, struct vcpu *v)
{
	struct x86_state x;

	vcpu_get_state(v, &x);
	if (v->vm->paused_tsc[v->index]) /* the engine's counter does not stand */
		x.tsc = v->vm->paused_tsc[v->index];
	x86_state_visit(s, &x);
	if (state_loading(s)) {
		struct error err = {""};

		v->vm->paused_tsc[v->index] = x.tsc;
		state_check(s, vcpu_set_state(v, &x, &err) == 0, err.msg);
	}
}

void vm_state(struct state *s, struct vm *vm)
{
	state_enter(s, "vm", 1);
	for (unsigned i = 0; i < vm->nr_cpus && !s->failed; i++)
		cpu_state(s, &vm->cpu[i]);
	if (!s->failed)
		machine_state(s, vm->machine);
	if (!s->failed)
		vm_devices_state(s, vm);
	state_leave(s);
}

/* ---- opening ---- */

static int parse_config(struct vm_saved *s, const uint8_t *buf, size_t len, struct error *err)
{
	struct state_reader r;

	state_reader_init(&r, buf, len, err);
	saved_config_state(&r.state, &s->config);
	return state_reader_finish(&r);
}

static void summarize(struct vm_saved *s)
{
	time_t when = (time_t)(s->config.when_ns / 1000000000u);
	char date[32] = "at some time";
	struct tm tm;

	if (gmtime_r(&when, &tm))
		strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S UTC", &tm);
	snprintf(s->summary, sizeof(s->summary), "saved %s by Trivisor %s, engine %s", date,
		 s->config.version, s->config.engine);
}

int vm_saved_open(struct vm_saved **out, const char *path, struct error *err)
{
	struct vm_saved *s = calloc(1, sizeof(*s));
	uint8_t *buf = NULL;
	size_t len = 0;
	int r;

	if (!s || !(s->path = strdup(path))) {
		free(s);
		return err_errno(err, ENOMEM, "resuming");
	}
	r = save_reader_open(&s->file, path, err);
	if (r == 0)
		r = save_reader_get(s->file, SAVE_CONFIG, &buf, &len, err);
	if (r == 0) {
		r = parse_config(s, buf, len, err);
		if (r < 0)
			err_wrap(err, r, "'%s'", path);
	}
	free(buf);
	if (r < 0) {
		vm_saved_close(s);
		return r;
	}
	summarize(s);
	*out = s;
	return 0;
}

void vm_saved_close(struct vm_saved *s)
{
	if (!s)
		return;
	save_reader_close(s->file);
	for (unsigned i = 0; i < VM_MAX_DISKS; i++)
		free(s->disk_path[i]);
	free(s->path);
	free(s);
}

const char *vm_saved_summary(const struct vm_saved *s)
{
	return s->summary;
}

/* ---- the caller's wishes and the file's facts ---- */

static int same_board(const struct saved_config *c, const struct vm_config *cfg, struct error *err)
{
	if (cfg->cpus && cfg->cpus != c->cpus)
		return err_set(err, EINVAL, "the saved VM has %u CPUs, not %u: leave --cpus out",
			       c->cpus, cfg->cpus);
	if (cfg->memory && cfg->memory != c->memory)
		return err_set(err, EINVAL,
			       "the saved VM has %llu MiB of memory, not %llu: leave --memory out",
			       (unsigned long long)(c->memory / MiB),
			       (unsigned long long)(cfg->memory / MiB));
	if (cfg->cpu)
		return err_set(err, EINVAL, "the CPU model is the saved VM's (%s): leave --cpu out",
			       c->model.name);
	if (cfg->micro && !c->micro)
		return err_set(err, EINVAL,
			       "the saved VM is no micro machine: leave --profile out");
	if (cfg->exit_port >= 0 && (!c->has_exit_port || cfg->exit_port != c->exit_port))
		return err_set(err, EINVAL, "the saved VM has no exit port %#x: leave it out",
			       cfg->exit_port);
	if (cfg->testdev && !c->testdev)
		return err_set(err, EINVAL, "the saved VM has no test device: leave it out");
	if (cfg->debugcon && !c->debugcon)
		return err_set(err, EINVAL, "the saved VM has no debug console: leave it out");
	return 0;
}

static int too_many(const char *what, unsigned have, unsigned given, struct error *err)
{
	return err_set(err, EINVAL, "the saved VM has %u %s, and %u are named", have, what, given);
}

/* A disk that is not named is beside the saved VM: a file that anybody may have made says no more
 * about where on this host to look. */
static int find_disk(struct vm_saved *s, unsigned i, struct vm_disk *out, struct error *err)
{
	const struct saved_disk *d = &s->config.disk[i];
	const char *slash = strrchr(s->path, '/');
	int dir = slash ? (int)(slash - s->path + 1) : 0;

	if (!d->file[0])
		return err_set(err, EINVAL, "disk%u: name its file with --disk", i);
	if (asprintf(&s->disk_path[i], "%.*s%s", dir, s->path, d->file) < 0) {
		s->disk_path[i] = NULL;
		return err_errno(err, ENOMEM, "resuming");
	}
	*out = (struct vm_disk){
		.path = s->disk_path[i], .format = d->format, .readonly = d->readonly};
	return 0;
}

static int choose_disks(struct vm_saved *s, struct vm_config *cfg, struct error *err)
{
	const struct saved_config *c = &s->config;
	int r = 0;

	if (cfg->nr_disks > c->nr_disks)
		return too_many("disks", c->nr_disks, cfg->nr_disks, err);
	for (unsigned i = cfg->nr_disks; i < c->nr_disks && r == 0; i++)
		r = find_disk(s, i, &cfg->disk[i], err);
	cfg->nr_disks = c->nr_disks;
	return r;
}

static int choose_ends(const struct saved_config *c, struct vm_config *cfg, struct error *err)
{
	if (cfg->nr_serials > c->nr_serials)
		return too_many("serial ports", c->nr_serials, cfg->nr_serials, err);
	if (cfg->nr_nets > c->nr_nets)
		return too_many("network cards", c->nr_nets, cfg->nr_nets, err);
	if (cfg->console && !c->console)
		return too_many("virtio consoles", 0, 1, err);
	for (; cfg->nr_serials < c->nr_serials; cfg->nr_serials++)
		cfg->serial[cfg->nr_serials] = cfg->nr_serials ? "null" : "stdio";
	for (; cfg->nr_nets < c->nr_nets; cfg->nr_nets++)
		cfg->net[cfg->nr_nets] = (struct vm_net){.target = ""};
	if (c->console && !cfg->console)
		cfg->console = "null";
	return 0;
}

int vm_saved_config(struct vm_saved *s, struct vm_config *cfg, struct error *err)
{
	const struct saved_config *c = &s->config;
	int r = same_board(c, cfg, err);

	if (r == 0)
		r = choose_disks(s, cfg, err);
	if (r == 0)
		r = choose_ends(c, cfg, err);
	if (r < 0)
		return err_wrap(err, r, "'%s'", s->path);
	cfg->cpus = c->cpus;
	cfg->memory = c->memory;
	cfg->cpu = c->model.name;
	cfg->micro = c->micro;
	cfg->exit_port = c->has_exit_port ? c->exit_port : -1;
	cfg->testdev = c->testdev;
	cfg->debugcon = c->debugcon;
	cfg->saved = s;
	return 0;
}

int vm_saved_cpu(const struct vm_saved *s, const struct engine *engine, struct cpu_model *m,
		 struct error *err)
{
	uint64_t lacks[ARRAY_SIZE(m->features)] = {0};
	char names[256];
	int r;

	*m = s->config.model;
	r = cpu_model_check(m, err);
	if (r == 0 && engine->cpu_lacks)
		r = engine->cpu_lacks(m, lacks, err);
	if (r < 0)
		return err_wrap(err, r, "'%s'", s->path);
	for (size_t i = 0; i < ARRAY_SIZE(lacks); i++) {
		if (!lacks[i])
			continue;
		cpu_features_print(lacks, names, sizeof(names));
		return err_set(err, ENOTSUP,
			       "'%s': the guest has seen CPU features that engine %s lacks here: "
			       "%s (a VM started with --cpu base runs everywhere)",
			       s->path, engine->name, names);
	}
	return 0;
}

/* ---- loading ---- */

/* What else there is to a vhost-user disk its back end says, and the device's state checks. */
static int same_served(const struct vm *vm, unsigned i, const struct saved_disk *d,
		       struct error *err)
{
	const char *path = vm->cfg.disk[i].path;
	uint64_t size;

	if (vm->cfg.disk[i].vhost_user != !strcmp(d->format, VM_DISK_VHOST))
		return err_set(err, EINVAL, "disk%u: '%s' is %s vhost-user disk, the saved VM's %s",
			       i, path, vm->cfg.disk[i].vhost_user ? "a" : "no",
			       vm->cfg.disk[i].vhost_user ? "is none" : "is one");
	if (!vm->cfg.disk[i].vhost_user)
		return 0;
	size = vhost_blk_size(vm->devices.vhost_blk[i]);
	if (size != d->size)
		return err_set(err, EINVAL, "disk%u: '%s' has %llu bytes, the saved VM's disk %llu",
			       i, path, (unsigned long long)size, (unsigned long long)d->size);
	return 0;
}

static int same_disk(const struct vm *vm, unsigned i, const struct saved_disk *d, struct error *err)
{
	const struct blk_info *info = blk_info(vm->devices.blk[i]);
	const char *path = vm->cfg.disk[i].path;

	if (info->size != d->size)
		return err_set(err, EINVAL, "disk%u: '%s' has %llu bytes, the saved VM's disk %llu",
			       i, path, (unsigned long long)info->size,
			       (unsigned long long)d->size);
	if (info->block_size != d->block_size)
		return err_set(err, EINVAL,
			       "disk%u: '%s' has sectors of %u bytes, the saved VM's disk of %u", i,
			       path, info->block_size, d->block_size);
	if (info->readonly != d->readonly)
		return err_set(err, EINVAL, "disk%u: '%s' is %s, the saved VM's disk was %s", i,
			       path, info->readonly ? "read-only" : "writable",
			       d->readonly ? "read-only" : "writable");
	if (info->can_discard != d->can_discard || info->can_zero != d->can_zero)
		return err_set(err, EINVAL,
			       "disk%u: '%s' and the saved VM's disk differ in discarding or "
			       "zeroing: put it on a file system like the one it was on",
			       i, path);
	return 0;
}

static int same_disks(const struct vm *vm, const struct saved_config *c, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < c->nr_disks && r == 0; i++) {
		r = same_served(vm, i, &c->disk[i], err);
		if (r == 0 && vm->devices.blk[i])
			r = same_disk(vm, i, &c->disk[i], err);
	}
	return r;
}

/* A guest by kvm-clock is told the new rate; one that counts the TSC itself will drift. */
static void choose_tsc_rate(struct vm *vm, uint64_t khz)
{
	uint64_t have = vm->engine->tsc_khz(vm->evm);
	struct error err = {""};

	if (khz == have)
		return;
	if (vm->engine->tsc_khz_set && vm->engine->tsc_khz_set(vm->evm, khz, &err) < 0)
		fprintf(stderr, "hv: %s; the guest's clock may drift\n", err.msg);
	machine_set_tsc_khz(vm->machine, vm->engine->tsc_khz(vm->evm));
}

static int load_state(struct vm *vm, struct save_reader *file, struct error *err)
{
	struct state_reader r;
	uint8_t *buf = NULL;
	size_t len = 0;
	int e = save_reader_get(file, SAVE_STATE, &buf, &len, err);

	if (e == 0)
		e = save_reader_end(file, err);
	if (e == 0) {
		state_reader_init(&r, buf, len, err);
		vm_state(&r.state, vm);
		e = state_reader_finish(&r);
	}
	free(buf);
	return e;
}

/* The VM stands, and its devices with it, until all has been read and found good. */
int vm_resume_load(struct vm *vm, struct error *err)
{
	struct vm_saved *s = vm->cfg.saved;
	int r = same_disks(vm, &s->config, err);

	if (r < 0)
		return err_wrap(err, r, "'%s'", s->path);
	choose_tsc_rate(vm, s->config.tsc_khz);
	machine_pause(vm->machine);
	vm_devices_pause(vm);
	vm->paused = true;
	r = save_reader_ram(s->file, vm->mem, NULL, err);
	if (r == 0)
		r = load_state(vm, s->file, err);
	return r;
}
