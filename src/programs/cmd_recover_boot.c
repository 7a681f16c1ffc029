/* cmd_recover_boot.c - hv recover boot: a VM straight from a damaged datastore.
 *
 * The worker finds the VM, its disks and the kernel on them, and serves the disks by FUSE in a
 * directory of our own; outside, `hv run` starts on those, with an overlay that is forgotten. */
#include "programs/hv.h"
#include "programs/recover_cli.h"
#include "programs/recover_kernel.h"
#include "programs/recover_tree.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { OPT_KERNEL = RECOVER_OPT_OWN, OPT_INITRD, OPT_APPEND, OPT_MEMORY, OPT_CPUS, OPT_DRY };
enum { DEFAULT_MEMORY_MIB = 1024, MAX_MEMORY_MIB = 1024 * 1024, MAX_CPUS = 64, MAX_DISKS = 16 };

static struct {
	const char *kernel, *initrd, *append, *memory, *cpus;
	bool dry;
	char dir[64], files[80], mnt[80]; /* our own directory, in it the kernel, and the mount */
	struct tree_mount *mount;
	/* What the worker said when it was ready. */
	unsigned nr_disks, memory_mib, nr_cpus;
	bool ready, has_kernel, has_initrd;
	char line[RECOVER_APPEND_MAX];
} boot;

static const struct option options[] = {
	{"kernel", required_argument, NULL, OPT_KERNEL},
	{"initrd", required_argument, NULL, OPT_INITRD},
	{"append", required_argument, NULL, OPT_APPEND},
	{"memory", required_argument, NULL, OPT_MEMORY},
	{"cpus", required_argument, NULL, OPT_CPUS},
	{"dry-run", no_argument, NULL, OPT_DRY},
	{0},
};

static int take_option(struct recover *rc, int c)
{
	switch (c) {
	case OPT_KERNEL:
		boot.kernel = optarg;
		return 1;
	case OPT_INITRD:
		boot.initrd = optarg;
		return 1;
	case OPT_APPEND:
		boot.append = optarg;
		return 1;
	case OPT_MEMORY:
		boot.memory = optarg;
		return 1;
	case OPT_CPUS:
		boot.cpus = optarg;
		return 1;
	case OPT_DRY:
		boot.dry = true;
		return 1;
	default:
		return 0;
	}
}

/* --- outside: a directory ----------------------------------------------------------------------
 */

static void remove_dir(void)
{
	static const char *const names[] = {"kernel", "initrd", "kernel.partial", "initrd.partial"};
	char path[PATH_MAX];

	if (!*boot.dir)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", boot.files, names[i]);
		(void)unlink(path);
	}
	(void)rmdir(boot.files);
	(void)rmdir(boot.mnt);
	(void)rmdir(boot.dir);
}

static int before(struct recover *rc)
{
	struct error err = {0};

	strcpy(boot.dir, "/tmp/hv-recover-XXXXXX");
	if (!mkdtemp(boot.dir)) {
		*boot.dir = 0;
		err_errno(&err, errno, "cannot make a directory in /tmp");
		return recover_fail(rc, &err);
	}
	snprintf(boot.files, sizeof(boot.files), "%s/files", boot.dir);
	snprintf(boot.mnt, sizeof(boot.mnt), "%s/disks", boot.dir);
	if (mkdir(boot.files, 0700) < 0 || mkdir(boot.mnt, 0700) < 0)
		err_errno(&err, errno, "cannot make a directory in %s", boot.dir);
	else if (tree_mount(&boot.mount, boot.mnt, rc->name[0], false, &err) == 0) {
		rc->target.path = boot.files;
		return 0;
	}
	remove_dir();
	return recover_fail(rc, &err);
}

static void after(struct recover *rc)
{
	tree_unmount(boot.mount);
	boot.mount = NULL;
	remove_dir();
}

/* --- in the worker -----------------------------------------------------------------------------
 */

/* A number of the VMX: "memsize = "2048"". */
static unsigned vmx_number(struct recover *rc, uint64_t vmx, const char *key, unsigned preset,
			   unsigned max)
{
	struct rec_entry e;
	struct blk *b = NULL;
	char *text = NULL, *p;
	unsigned value = preset;
	size_t n;

	if (!vmx || rec_entry(rc->rec, vmx, &e, NULL) < 0 || e.length > MiB ||
	    rec_blk(rc->rec, vmx, 0, &b, NULL) < 0)
		return preset;
	n = (size_t)e.length;
	text = calloc(1, n + 1);
	if (text && n && blk_read(b, text, n, 0) == 0)
		for (p = text; (p = strcasestr(p, key)); p += strlen(key)) {
			const char *q = p + strlen(key);

			if (p != text && p[-1] != '\n')
				continue;
			q += strspn(q, " \t=\"");
			value = (unsigned)MIN(strtoul(q, NULL, 10), (unsigned long)max);
			break;
		}
	blk_close(b);
	free(text);
	return value ? value : preset;
}

static int put_file(struct recover *rc, const char *name, const char *data, size_t len,
		    struct error *err)
{
	int fd = -1, r = recover_make_file(rc, name, len, 0, &fd, err);

	for (size_t done = 0; r == 0 && done < len;) {
		ssize_t n = write(fd, data + done, len - done);

		if (n < 0)
			r = err_errno(err, errno, "cannot write '%s'", name);
		else
			done += (size_t)n;
	}
	if (fd >= 0)
		close(fd);
	return r < 0 ? r : recover_file_done(rc, name, 0, err);
}

/* The first of the VM's disks with a kernel. */
static int find_kernel(struct recover *rc, const struct rec_vm *vm, struct recover_kernel *k,
		       struct error *err)
{
	int r = err_set(err, ENOENT, "VM \"%s\" has no disk", vm->name);

	for (unsigned i = 0; i < vm->nr_disks && r < 0; i++) {
		struct guestfs *g = NULL;
		struct blk *b = NULL;

		r = rec_open_disk(rc->rec, vm->disk[i].descriptor, 0, &b, err);
		if (r == 0)
			r = guestfs_open(&g, b, err);
		if (r == 0)
			r = recover_kernel_find(g, i, k, err);
		guestfs_close(g);
		blk_close(b);
	}
	return r < 0 ? err_wrap(err, r, "cannot boot \"%s\" (--kernel names a kernel)", vm->name)
		     : 0;
}

static int say_ready(struct recover *rc, const struct rec_vm *vm, const struct recover_kernel *k,
		     struct error *err)
{
	char text[RECOVER_PATH_MAX];

	snprintf(text, sizeof(text), "%u %u %u %d %d\n%s", MIN(vm->nr_disks, (unsigned)MAX_DISKS),
		 vmx_number(rc, vm->vmx, "memsize", DEFAULT_MEMORY_MIB, MAX_MEMORY_MIB),
		 vmx_number(rc, vm->vmx, "numvcpus", 1, MAX_CPUS), k->kernel != NULL,
		 k->initrd != NULL, k->append);
	return recover_tell_ready(rc, text, err);
}

static int prepare(struct recover *rc, struct rec_vm *vm, struct error *err)
{
	struct recover_kernel k = {0};
	int r = rec_vm_find(rc->rec, rc->extra[0], vm, err);

	if (r == 0 && !boot.kernel)
		r = find_kernel(rc, vm, &k, err);
	if (r == 0 && k.kernel) {
		recover_say(rc, "booting %s", k.from);
		r = put_file(rc, "kernel", k.kernel, k.kernel_len, err);
	}
	if (r == 0 && k.initrd)
		r = put_file(rc, "initrd", k.initrd, k.initrd_len, err);
	if (r == 0 && vm->worst != REC_EXACT)
		recover_say(rc, "not all bytes of this VM are sure: %s at worst",
			    rec_trust_name(vm->worst));
	if (r == 0)
		r = say_ready(rc, vm, &k, err);
	recover_kernel_free(&k);
	return r;
}

static int work(struct recover *rc)
{
	struct error err = {0};
	struct rec_vm vm;
	int r = prepare(rc, &vm, &err);

	if (r < 0)
		return recover_fail(rc, &err);
	signal(SIGINT, SIG_IGN); /* the terminal is the guest's now */
	return recover_tree_serve(rc, boot.mount, vm.id) < 0 ? HV_EXIT_FAILED : HV_EXIT_OK;
}

/* --- outside: the VM ---------------------------------------------------------------------------
 */

static void on_ready(struct recover *rc, const char *text)
{
	int kernel, initrd, used = 0;

	if (sscanf(text, "%u %u %u %d %d\n%n", &boot.nr_disks, &boot.memory_mib, &boot.nr_cpus,
		   &kernel, &initrd, &used) < 5 ||
	    !used)
		return;
	boot.nr_disks = MIN(boot.nr_disks, (unsigned)MAX_DISKS);
	boot.memory_mib = MAX(MIN(boot.memory_mib, (unsigned)MAX_MEMORY_MIB), 64U);
	boot.nr_cpus = MAX(MIN(boot.nr_cpus, (unsigned)MAX_CPUS), 1U);
	boot.has_kernel = kernel;
	boot.has_initrd = initrd;
	snprintf(boot.line, sizeof(boot.line), "%s", text + used);
	boot.ready = true;
}

struct command {
	char *argv[256];
	unsigned n;
};

static void add(struct command *c, const char *fmt, ...) PRINTF_LIKE(2, 3);

static void add(struct command *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (c->n + 1 < ARRAY_SIZE(c->argv) && vasprintf(&c->argv[c->n], fmt, ap) >= 0)
		c->n++;
	va_end(ap);
}

static void make_command(const struct recover *rc, struct command *c)
{
	const char *hv = getenv("TRIVISOR_HV");

	add(c, "%s", hv ? hv : "hv");
	add(c, "run");
	add(c, "--kernel");
	add(c, "%s%s", boot.kernel ? boot.kernel : boot.files, boot.kernel ? "" : "/kernel");
	if (boot.initrd || boot.has_initrd) {
		add(c, "--initrd");
		add(c, "%s%s", boot.initrd ? boot.initrd : boot.files,
		    boot.initrd ? "" : "/initrd");
	}
	add(c, "--append");
	add(c, "%s", boot.append ? boot.append : boot.line);
	add(c, "--memory");
	if (boot.memory)
		add(c, "%s", boot.memory);
	else
		add(c, "%uM", boot.memory_mib);
	add(c, "--cpus");
	if (boot.cpus)
		add(c, "%s", boot.cpus);
	else
		add(c, "%u", boot.nr_cpus);
	for (unsigned i = 0; i < boot.nr_disks; i++) {
		add(c, "--disk");
		add(c, "%s/.disks/vm/disk%u.raw,overlay=on", boot.mnt, i);
	}
	for (unsigned i = 0; i < rc->nr_rest; i++)
		add(c, "%s", rc->rest[i]);
}

static void print_command(const struct command *c)
{
	for (unsigned i = 0; i < c->n; i++)
		printf("%s%s%s%s", i ? " " : "", strchr(c->argv[i], ' ') ? "'" : "", c->argv[i],
		       strchr(c->argv[i], ' ') ? "'" : "");
	putchar('\n');
}

static volatile sig_atomic_t vm_pid;

static void end_vm(int sig)
{
	if (vm_pid > 0)
		kill(vm_pid, sig);
}

/* What ends us ends the VM, in order: then the disks are unmounted. */
static void forward_signals(void)
{
	const struct sigaction end = {.sa_handler = end_vm, .sa_flags = SA_RESTART};

	sigaction(SIGTERM, &end, NULL);
	sigaction(SIGHUP, &end, NULL);
}

static int run_it(const struct recover *rc, struct command *c)
{
	pid_t pid;
	int status;

	fflush(NULL);
	forward_signals();
	pid = fork();
	vm_pid = pid;
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		signal(SIGINT, SIG_DFL);
		signal(SIGTERM, SIG_DFL);
		signal(SIGHUP, SIG_DFL);
		signal(SIGPIPE, SIG_DFL);
		c->argv[c->n] = NULL;
		execvp(c->argv[0], c->argv);
		fprintf(stderr, "hv recover boot: cannot start '%s': %s\n", c->argv[0],
			strerror(errno));
		_exit(HV_EXIT_FAILED);
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return HV_EXIT_FAILED;
	return pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : HV_EXIT_FAILED;
}

static int outside(struct recover *rc)
{
	struct command c = {0};
	int status = -1;

	if (boot.ready) {
		make_command(rc, &c);
		if (boot.dry)
			print_command(&c);
		status = boot.dry ? HV_EXIT_OK : run_it(rc, &c);
	}
	for (unsigned i = 0; i < c.n; i++)
		free(c.argv[i]);
	tree_unmount(boot.mount); /* ends the worker */
	boot.mount = NULL;
	return status;
}

const struct recover_command recover_boot = {
	.name = "boot",
	.summary = "start a VM straight from the datastore",
	.usage = "[OPTION]... SOURCE... VM [-- HV-RUN-OPTION...]",
	.help = "Starts the virtual machine named VM (its display name, or the path of its "
		"directory or VMX)\n"
		"on its disks as they were found.  What it writes is forgotten in the end; the "
		"sources stay\n"
		"as they are.  Linux guests: the kernel is taken from the disk, as GRUB's "
		"configuration\n"
		"says; memory and CPUs from the VMX.  Needs FUSE.\n\n"
		"  --kernel FILE, --initrd FILE   boot these in place of what is on the disk\n"
		"  --append TEXT       kernel command line in place of the one found\n"
		"  --memory SIZE       memory of the VM\n"
		"  --cpus N            its virtual CPUs\n"
		"  --dry-run           print the command that would start it\n"
		"  -- OPTION...        more options for `hv run`, such as --net user\n",
	.options = options,
	.extra_args = 1,
	.takes_rest = true,
	.depth = REC_META,
	.option = take_option,
	.before = before,
	.work = work,
	.on_ready = on_ready,
	.outside = outside,
	.after = after,
};
