/* vm/save.c - saving a VM: its state on the loop's thread, its memory by a thread; see save.h.
 *
 *   loop                            thread
 *   vm_save: the VM stands
 *     state -> buffers
 *     start ----------------------> CONFIG, RAM (tells how far), STATE, END, rename
 *   save_told  <----------------- post
 *   save_ended <----------------- post, ends */
#include "vm/save.h"

#include "base/clock.h"
#include "base/error.h"
#include "block/blk.h"
#include "devices/virtio/vhost_blk.h"
#include "machine/machine.h"
#include "state/stream.h"
#include "vm/save_config.h"
#include "vm/save_state.h"
#include "vm/savefile.h"
#include "vm/vm_internal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROGRESS_STEP_NS (250 * 1000 * 1000ull)

struct vm_save_job {
	struct vm *vm;
	enum vm_save_then then;
	bool was_running;
	char *path;
	struct save_writer *file; /* the thread's, once it runs */
	uint8_t *config, *state;
	size_t config_len, state_len;

	pthread_t thread;
	atomic_bool cancel;
	_Atomic uint64_t done, total; /* bytes of guest memory */
	uint64_t told_ns;             /* the thread's: when it last posted */

	/* The thread's result, for save_ended. */
	int result;
	uint64_t bytes;
	struct error err;
};

/* ---- what the VM is ---- */

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static void copy_text(char *to, size_t len, const char *from)
{
	snprintf(to, len, "%s", from);
}

static void describe_disk(struct saved_disk *d, const struct vm_disk *disk, const char *format,
			  const struct blk *b)
{
	const struct blk_info *info = blk_info(b);

	copy_text(d->file, sizeof(d->file), base_name(disk->path));
	copy_text(d->format, sizeof(d->format), format);
	d->size = info->size;
	d->block_size = info->block_size;
	d->readonly = info->readonly;
	d->can_discard = info->can_discard;
	d->can_zero = info->can_zero;
}

/* No file name: whoever resumes it names the socket. */
static void describe_served(struct saved_disk *d, const struct vhost_blk *b)
{
	copy_text(d->format, sizeof(d->format), VM_DISK_VHOST);
	d->size = vhost_blk_size(b);
	d->block_size = 512;
}

void vm_describe(struct vm *vm, struct saved_config *c)
{
	const struct vm_config *cfg = &vm->cfg;

	*c = (struct saved_config){
		.when_ns = clock_real_ns(),
		.version = "0.1.0",
		.cpus = cfg->cpus,
		.memory = cfg->memory,
		.tsc_khz = vm->engine->tsc_khz(vm->evm),
		.model = vm->model,
		.nr_serials = cfg->nr_serials,
		.nr_disks = cfg->nr_disks,
		.nr_nets = cfg->nr_nets,
		.micro = cfg->micro,
		.console = cfg->console != NULL,
		.testdev = cfg->testdev,
		.debugcon = cfg->debugcon,
		.has_exit_port = cfg->exit_port >= 0,
		.exit_port = (uint16_t)MAX(cfg->exit_port, 0),
	};
	copy_text(c->engine, sizeof(c->engine), vm->engine->name);
	for (unsigned i = 0; i < cfg->nr_disks; i++) {
		if (cfg->disk[i].vhost_user)
			describe_served(&c->disk[i], vm->devices.vhost_blk[i]);
		else
			describe_disk(&c->disk[i], &cfg->disk[i], vm->devices.disk_format[i],
				      vm->devices.blk[i]);
	}
}

/* ---- the thread ---- */

static void save_told(void *arg)
{
	struct vm_save_job *job = arg;

	vm_tell(job->vm, &(struct vm_event){.what = VM_EVENT_SAVE_PROGRESS,
					    .file = job->path,
					    .done = atomic_load(&job->done),
					    .total = atomic_load(&job->total)});
}

static bool save_progress(void *opaque, uint64_t done, uint64_t total)
{
	struct vm_save_job *job = opaque;
	uint64_t now = clock_mono_ns();

	atomic_store(&job->done, done);
	atomic_store(&job->total, total);
	if (now - job->told_ns >= PROGRESS_STEP_NS) {
		job->told_ns = now;
		evloop_post(job->vm->loop, save_told, job);
	}
	return !atomic_load(&job->cancel);
}

static int flush_disks(struct vm *vm, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < vm->cfg.nr_disks && r == 0; i++) {
		r = vm->devices.blk[i] ? blk_flush(vm->devices.blk[i]) : 0;
		if (r < 0)
			err_errno(err, -r, "disk%u: cannot write what the guest has written", i);
	}
	return r;
}

static int write_all(struct vm_save_job *job)
{
	struct save_progress progress = {save_progress, job};
	struct error *err = &job->err;
	int r = flush_disks(job->vm, err);

	if (r == 0)
		r = save_writer_put(job->file, SAVE_CONFIG, job->config, job->config_len, err);
	if (r == 0)
		r = save_writer_ram(job->file, job->vm->mem, &progress, err);
	if (r == 0)
		r = save_writer_put(job->file, SAVE_STATE, job->state, job->state_len, err);
	if (r < 0)
		save_writer_abort(job->file);
	else
		r = save_writer_commit(job->file, &job->bytes, err);
	job->file = NULL;
	return r;
}

static void save_ended(void *arg);

static void *save_main(void *arg)
{
	struct vm_save_job *job = arg;

	job->result = write_all(job);
	evloop_post(job->vm->loop, save_ended, job);
	return NULL;
}

/* Signals are for the thread that waits for them. */
static int start_thread(struct vm_save_job *job)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&job->thread, NULL, save_main, job);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -r;
}

/* ---- the loop ---- */

static void job_free(struct vm_save_job *job)
{
	save_writer_abort(job->file);
	free(job->config);
	free(job->state);
	free(job->path);
	free(job);
}

static void save_tell_end(struct vm_save_job *job)
{
	struct vm_event ev = {.what = VM_EVENT_SAVE_DONE, .file = job->path, .done = job->bytes};

	if (job->result < 0) {
		ev.what = VM_EVENT_SAVE_FAILED;
		ev.error = job->err.msg;
	}
	vm_tell(job->vm, &ev);
}

/* A failed save leaves the VM as it was; a good one does what was asked. */
static void save_then(struct vm *vm, const struct vm_save_job *job)
{
	bool failed = job->result < 0;

	if (failed ? job->was_running : job->then == VM_SAVE_CONT)
		vm_cont(vm, NULL);
	else if (!failed && job->then == VM_SAVE_QUIT)
		vm_end(vm, VM_END_QUIT, 0);
}

static void save_ended(void *arg)
{
	struct vm_save_job *job = arg;
	struct vm *vm = job->vm;

	pthread_join(job->thread, NULL);
	evloop_unpost(vm->loop, save_told, job);
	vm->save = NULL;
	save_then(vm, job);
	save_tell_end(job);
	job_free(job);
}

void vm_save_cancel(struct vm *vm)
{
	struct vm_save_job *job = vm->save;

	if (!job)
		return;
	atomic_store(&job->cancel, true);
	pthread_join(job->thread, NULL);
	evloop_unpost(vm->loop, save_told, job);
	evloop_unpost(vm->loop, save_ended, job);
	vm->save = NULL;
	save_tell_end(job);
	job_free(job);
}

static int take_config(struct vm_save_job *job, struct error *err)
{
	struct saved_config *c = calloc(1, sizeof(*c));
	struct state_writer w;
	int r;

	if (!c)
		return err_errno(err, ENOMEM, "saving");
	vm_describe(job->vm, c);
	state_writer_init(&w, err);
	saved_config_state(&w.state, c);
	r = state_writer_finish(&w, &job->config, &job->config_len);
	free(c);
	return r;
}

static int take_state(struct vm_save_job *job, struct error *err)
{
	struct state_writer w;

	state_writer_init(&w, err);
	vm_state(&w.state, job->vm);
	return state_writer_finish(&w, &job->state, &job->state_len);
}

static int job_begin(struct vm_save_job *job, const char *path, struct error *err)
{
	int r;

	job->path = strdup(path);
	if (!job->path)
		return err_errno(err, ENOMEM, "saving");
	r = save_writer_open(&job->file, path, err);
	if (r < 0)
		return r;
	vm_pause(job->vm);
	if (vm_has_ended(job->vm))
		return err_set(err, ECANCELED, "the VM has ended");
	r = vm_devices_whole(job->vm, err);
	if (r == 0)
		r = take_config(job, err);
	if (r == 0)
		r = take_state(job, err);
	if (r < 0)
		return r;
	r = start_thread(job);
	return r < 0 ? err_errno(err, -r, "cannot start a thread for saving") : 0;
}

int vm_save(struct vm *vm, const char *path, enum vm_save_then then, struct error *err)
{
	struct vm_save_job *job;
	int r;

	if (vm->save)
		return err_set(err, EBUSY, "the VM is being saved already");
	if (vm_has_ended(vm))
		return err_set(err, ECANCELED, "the VM has ended");
	if (vm->cfg.nr_vfio)
		return err_set(err, ENOTSUP,
			       "%s is a device of this host, whose state nobody knows: such a VM "
			       "cannot be saved",
			       vm->cfg.vfio[0]);
	for (unsigned i = 0; i < vm->cfg.nr_disks; i++)
		if (vm->cfg.disk[i].overlay)
			return err_set(
				err, ENOTSUP,
				"disk%u is a throw-away overlay (overlay=on): what the guest "
				"wrote to it would be missing, so such a VM cannot be saved",
				i);
	job = calloc(1, sizeof(*job));
	if (!job)
		return err_errno(err, ENOMEM, "saving");
	job->vm = vm;
	job->then = then;
	job->was_running = !vm->paused;
	r = job_begin(job, path, err);
	if (r == 0) {
		vm->save = job;
		return 0;
	}
	if (job->was_running)
		vm_cont(vm, NULL);
	job_free(job);
	return r;
}
