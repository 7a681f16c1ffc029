/* run_options.c - see run_options.h. */
#include "programs/run_options.h"

#include "base/log.h"
#include "programs/hv.h"
#include "programs/run_placement.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

static void print_help(void)
{
	printf("Usage: hv run --kernel FILE [OPTION]...\n"
	       "       hv run --resume FILE [OPTION]...\n\n"
	       "Starts a VM in the foreground and ends when it powers off.\n\n"
	       "Guest:\n"
	       "  --kernel FILE         Linux bzImage, PVH or multiboot 1 kernel\n"
	       "  --initrd FILE         initial RAM disk; for multiboot: 'FILE ARGS,FILE ARGS'\n"
	       "  --append TEXT         kernel command line\n"
	       "  --cpus N              virtual CPUs, 1 to %d (1)\n"
	       "  --memory SIZE[,hugepages=on|2M|1G][,prealloc=on][,lock=on]\n"
	       "          [,numa=NODES][,numa-policy=bind|prefer|interleave]\n"
	       "                        guest memory: 512M, 2G; a plain number is MiB (512M)\n"
	       "  --cpu MODEL           CPU model: base, max, or base,+avx2,-aes (max)\n"
	       "  --engine NAME         auto, kvm or soft (auto)\n"
	       "  --profile NAME        pc, or micro: a board with only what a Linux that is "
	       "booted\n"
	       "                        directly needs (pc)\n\n"
	       "Devices:\n"
	       "  --disk FILE[,format=FORMAT][,readonly=on][,allow-ref=DIR][,secret=FILE]\n"
	       "         [,snapshot=NAME][,overlay=on][,throttle.LIMIT=N]...[,bus=virtio]\n"
	       "                        a disk of any format (raw); files it names may lie beside\n"
	       "                        it or under DIR; may be given up to %d times.  "
	       "overlay=on:\n"
	       "                        what the guest writes is forgotten in the end.  LIMIT: "
	       "bps,\n"
	       "                        iops, either with -read or -write: at most N a second\n"
	       "  --disk vhost-user=SOCKET\n"
	       "                        a disk that another process serves (engine kvm)\n"
	       "  --net user[,forward=tcp:HOSTPORT:GUESTPORT]...|none\n"
	       "                        network card behind user-mode NAT (none)\n"
	       "  --net tap[=IFNAME][,mac=ADDRESS][,vhost=auto|on|off]\n"
	       "                        network card on a tap interface of this host, served by\n"
	       "                        its kernel where that can (auto)\n"
	       "  --net vhost-user=SOCKET[,mac=ADDRESS]\n"
	       "                        network card that another process serves (engine kvm)\n"
	       "  --vfio ADDRESS        pass a PCI device of this host through (0000:65:00.0), "
	       "bound "
	       "to\n"
	       "                        vfio-pci; may be given up to %d times\n"
	       "  --serial stdio|file=PATH|unix=PATH|null\n"
	       "                        COM1, given again COM2 to COM4 (stdio)\n"
	       "  --console SPEC        a virtio console (hvc0), SPEC as for --serial\n"
	       "  --exit-port PORT      a guest write of V ends hv with status (V<<1)|1\n"
	       "  --testdev             ports and memory for public CPU test suites (see "
	       "hv-run(1))\n"
	       "  --debugcon            bytes written to port 0xE9 appear on standard output\n\n"
	       "Place on the host:\n"
	       "  --cpu-pin LIST        virtual CPU n runs on the nth host CPU of a list (0-3,8)\n"
	       "  --cpu-pin VCPUS=LIST  these (a list, or all) run on any of the host CPUs\n"
	       "  --sched POLICY        of the CPUs' threads: other, batch, idle, fifo:PRIO, "
	       "rr:PRIO\n"
	       "  --cpu-weight N        share of CPU time beside others, 1 to 10000 (cgroup v2)\n"
	       "  --cpu-max PERCENT     at most this much of one CPU, 250 = two and a half\n\n"
	       "Running:\n"
	       "  --control unix=PATH   a control socket: see hv-control(1)\n"
	       "  --resume FILE         go on with a VM that was saved through its control socket\n"
	       "  --paused              run nothing before 'hv control PATH cont'\n"
	       "  --no-reboot           end, with status 0, when the guest resets\n"
	       "  --timeout SECONDS     end with status 124 after this long\n"
	       "  --stats               print what the engine did when the VM has ended\n"
	       "  --log SPEC            what to log: debug, or COMPONENT=LEVEL,...\n"
	       "  --help                this text\n\n"
	       "With --serial stdio on a terminal: Ctrl-A x leaves, Ctrl-A h lists the keys.\n\n"
	       "Exit status: 0 the guest powered off, 1 the host failed, 2 wrong usage, 3 the "
	       "guest\n"
	       "died of a triple fault, 124 time-out, or the value from the exit port.\n",
	       VM_MAX_CPUS, VM_MAX_DISKS, VM_MAX_VFIO);
}

/* Split "FILE,key=value,..." in place; returns what stands before the first comma. */
static char *split_options(char *text, char **rest)
{
	*rest = strchr(text, ',');
	if (*rest)
		*(*rest)++ = 0;
	return text;
}

static int parse_switch(const char *value, bool *on)
{
	if (!strcmp(value, "on") || !strcmp(value, "off")) {
		*on = !strcmp(value, "on");
		return 0;
	}
	return -1;
}

/* throttle.bps, throttle.iops-read, ...; also spelled as QEMU's -drive has them:
 * throttling.bps-total; with -max behind it what may pass at once.  0: taken; 1: it is none of
 * these. */
static int parse_limit(struct blk_limits *l, const char *key, const char *value)
{
	const struct {
		const char *name;
		struct blk_rate *rate;
	} limits[] = {
		{"bps", &l->bytes},           {"bps-total", &l->bytes},
		{"bps-read", &l->bytes_read}, {"bps-write", &l->bytes_written},
		{"iops", &l->requests},       {"iops-total", &l->requests},
		{"iops-read", &l->reads},     {"iops-write", &l->writes},
	};
	const char *name = strchr(key, '.') + 1;
	uint64_t v;

	if (parse_size(value, 1, &v) < 0)
		return usage_error("run", "--disk: %s: '%s' is not a number (500, 20M)", key,
				   value);
	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		size_t n = strlen(limits[i].name);

		if (strncmp(name, limits[i].name, n))
			continue;
		if (!name[n])
			limits[i].rate->per_s = v;
		else if (!strcmp(name + n, "-max"))
			limits[i].rate->burst = v;
		else
			continue;
		return 0;
	}
	return 1;
}

/* 0: taken; 1: it is none of these; otherwise an exit status. */
static int parse_disk_key(struct vm_disk *d, const char *key, const char *value)
{
	if (!strcmp(key, "format"))
		d->format = value;
	else if (!strcmp(key, "secret"))
		d->secret_file = value;
	else if (!strcmp(key, "snapshot"))
		d->snapshot = value;
	else if (!strncmp(key, "throttle.", 9) || !strncmp(key, "throttling.", 11))
		return parse_limit(&d->limits, key, value);
	else if (!strcmp(key, "overlay"))
		return parse_switch(value, &d->overlay) ? 1 : 0;
	else if (!strcmp(key, "allow-ref") && d->nr_allow_ref == VM_MAX_ALLOW_REF)
		return usage_error("run", "--disk: more than %d allow-ref", VM_MAX_ALLOW_REF);
	else if (!strcmp(key, "allow-ref"))
		d->allow_ref[d->nr_allow_ref++] = value;
	else if (!strcmp(key, "bus") && strcmp(value, "virtio"))
		return usage_error("run", "--disk: bus '%s' is not known; use virtio", value);
	else
		return strcmp(key, "bus") &&
		       (strcmp(key, "readonly") || parse_switch(value, &d->readonly));
	return 0;
}

static int parse_disk(struct run_options *o, char *arg)
{
	struct vm_disk *d = &o->vm.disk[o->vm.nr_disks];
	char *rest;

	if (o->vm.nr_disks == VM_MAX_DISKS)
		return usage_error("run", "more than %d disks", VM_MAX_DISKS);
	d->path = split_options(arg, &rest);
	d->format = "raw";
	if (!strncmp(d->path, "vhost-user=", 11)) {
		d->vhost_user = true;
		d->path += 11;
		if (rest)
			return usage_error("run",
					   "--disk: '%s': what a vhost-user disk is like, its back "
					   "end says",
					   rest);
	}
	for (char *key; rest && *rest;) {
		char *value;
		int r = 1;

		key = split_options(rest, &rest);
		value = strchr(key, '=');
		if (value) {
			*value++ = 0;
			r = parse_disk_key(d, key, value);
		}
		if (r > 1)
			return r;
		if (r)
			return usage_error("run", "--disk: '%s%s%s' is not understood", key,
					   value ? "=" : "", value ? value : "");
	}
	if (d->overlay && d->readonly)
		return usage_error("run",
				   "--disk: overlay=on is for writing: leave out readonly=on");
	if (d->snapshot && !d->overlay)
		d->readonly = true;
	if (!*d->path)
		return usage_error("run", "--disk: no file is named");
	o->vm.nr_disks++;
	return 0;
}

/* Six pairs of hexadecimal digits; a card's own address is never a group's. */
static bool parse_mac(const char *s, uint8_t mac[6])
{
	int end = 0;

	return strlen(s) == 17 &&
	       sscanf(s, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &mac[0], &mac[1], &mac[2],
		      &mac[3], &mac[4], &mac[5], &end) == 6 &&
	       end == 17 && !(mac[0] & 1);
}

static bool parse_vhost(const char *value, enum vm_vhost *vhost)
{
	static const char *const names[] = {
		[VM_VHOST_AUTO] = "auto", [VM_VHOST_ON] = "on", [VM_VHOST_OFF] = "off"};

	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		if (!strcmp(value, names[i])) {
			*vhost = i;
			return true;
		}
	}
	return false;
}

/* "tap[=IFNAME]" or "vhost-user=SOCKET", and what follows it. */
static int parse_net_kind(struct vm_net *n, char *kind, char *rest)
{
	char *value = strchr(kind, '=');

	if (value)
		*value++ = 0;
	if (!strcmp(kind, "tap") && (!value || *value))
		n->kind = VM_NET_TAP;
	else if (!strcmp(kind, "vhost-user") && value && *value)
		n->kind = VM_NET_VHOST_USER;
	else
		return usage_error("run",
				   "--net: '%s' is not known; use user, tap[=IFNAME], "
				   "vhost-user=SOCKET or none",
				   kind);
	n->target = value ? value : "";
	while (rest) {
		char *key = split_options(rest, &rest);

		value = strchr(key, '=');
		if (value)
			*value++ = 0;
		if (value && !strcmp(key, "mac") && parse_mac(value, n->mac))
			n->has_mac = true;
		else if (!value || strcmp(key, "vhost") || n->kind != VM_NET_TAP ||
			 !parse_vhost(value, &n->vhost))
			return usage_error("run", "--net: '%s%s%s' is not understood", key,
					   value ? "=" : "", value ? value : "");
	}
	return 0;
}

static int parse_net(struct run_options *o, char *arg)
{
	char *rest, *kind = split_options(arg, &rest);
	struct vm_net *n;
	int r;

	if (!strcmp(kind, "none") && !rest) {
		o->vm.nr_nets = 0;
		return 0;
	}
	if (o->vm.nr_nets == VM_MAX_NETS)
		return usage_error("run", "more than %d network cards", VM_MAX_NETS);
	n = &o->vm.net[o->vm.nr_nets];
	*n = (struct vm_net){.target = rest ? rest : ""};
	if (strcmp(kind, "user")) {
		r = parse_net_kind(n, kind, rest);
		if (r)
			return r;
	}
	o->vm.nr_nets++;
	return 0;
}

static int parse_engine(struct run_options *o, char *arg)
{
	char *rest;

	o->engine = split_options(arg, &rest);
	o->vm.engine_options = rest ? rest : "";
	return 0;
}

static int parse_amount(const char *option, const char *arg, uint64_t min, uint64_t max,
			uint64_t *v)
{
	if (parse_number(arg, max, v) == 0 && *v >= min)
		return 0;
	return usage_error("run", "--%s: '%s' is not a number from %llu to %llu", option, arg,
			   (unsigned long long)min, (unsigned long long)max);
}

static int parse_profile(struct run_options *o, const char *arg)
{
	if (strcmp(arg, "pc") && strcmp(arg, "micro"))
		return usage_error("run", "--profile: '%s' is not known; use pc or micro", arg);
	o->vm.micro = !strcmp(arg, "micro");
	return 0;
}

static int parse_control(struct run_options *o, const char *arg)
{
	if (strncmp(arg, "unix=", 5) || !arg[5])
		return usage_error("run", "--control: '%s' is not unix=PATH", arg);
	o->control = arg + 5;
	return 0;
}

static int parse_vfio(struct run_options *o, char *arg)
{
	if (o->vm.nr_vfio == VM_MAX_VFIO)
		return usage_error("run", "--vfio: at most %d devices", VM_MAX_VFIO);
	o->vm.vfio[o->vm.nr_vfio++] = arg;
	return 0;
}

static int parse_serial(struct run_options *o, const char *arg)
{
	if (o->vm.nr_serials == VM_MAX_SERIALS)
		return usage_error("run", "more than %d serial ports", VM_MAX_SERIALS);
	o->vm.serial[o->vm.nr_serials++] = arg;
	return 0;
}

enum {
	OPT_KERNEL = 256,
	OPT_INITRD,
	OPT_APPEND,
	OPT_CPUS,
	OPT_MEMORY,
	OPT_CPU,
	OPT_ENGINE,
	OPT_DISK,
	OPT_NET,
	OPT_SERIAL,
	OPT_VFIO,
	OPT_CONSOLE,
	OPT_EXIT_PORT,
	OPT_TESTDEV,
	OPT_DEBUGCON,
	OPT_NO_REBOOT,
	OPT_TIMEOUT,
	OPT_STATS,
	OPT_LOG,
	OPT_CONTROL,
	OPT_RESUME,
	OPT_PAUSED,
	OPT_PROFILE,
	OPT_CPU_PIN,
	OPT_SCHED,
	OPT_CPU_WEIGHT,
	OPT_CPU_MAX,
};

static const struct option long_options[] = {
	{"kernel", required_argument, NULL, OPT_KERNEL},
	{"initrd", required_argument, NULL, OPT_INITRD},
	{"append", required_argument, NULL, OPT_APPEND},
	{"cpus", required_argument, NULL, OPT_CPUS},
	{"memory", required_argument, NULL, OPT_MEMORY},
	{"cpu", required_argument, NULL, OPT_CPU},
	{"engine", required_argument, NULL, OPT_ENGINE},
	{"profile", required_argument, NULL, OPT_PROFILE},
	{"cpu-pin", required_argument, NULL, OPT_CPU_PIN},
	{"sched", required_argument, NULL, OPT_SCHED},
	{"cpu-weight", required_argument, NULL, OPT_CPU_WEIGHT},
	{"cpu-max", required_argument, NULL, OPT_CPU_MAX},
	{"disk", required_argument, NULL, OPT_DISK},
	{"net", required_argument, NULL, OPT_NET},
	{"vfio", required_argument, NULL, OPT_VFIO},
	{"serial", required_argument, NULL, OPT_SERIAL},
	{"console", required_argument, NULL, OPT_CONSOLE},
	{"exit-port", required_argument, NULL, OPT_EXIT_PORT},
	{"testdev", no_argument, NULL, OPT_TESTDEV},
	{"debugcon", no_argument, NULL, OPT_DEBUGCON},
	{"no-reboot", no_argument, NULL, OPT_NO_REBOOT},
	{"timeout", required_argument, NULL, OPT_TIMEOUT},
	{"stats", no_argument, NULL, OPT_STATS},
	{"log", required_argument, NULL, OPT_LOG},
	{"control", required_argument, NULL, OPT_CONTROL},
	{"resume", required_argument, NULL, OPT_RESUME},
	{"paused", no_argument, NULL, OPT_PAUSED},
	{"help", no_argument, NULL, 'h'},
	{0},
};

static int parse_option(struct run_options *o, int c, char *arg)
{
	struct error err;
	uint64_t v;

	switch (c) {
	case OPT_KERNEL:
		o->vm.kernel = arg;
		return 0;
	case OPT_INITRD:
		o->vm.initrd = arg;
		return 0;
	case OPT_APPEND:
		o->vm.append = arg;
		return 0;
	case OPT_CPUS:
		if (parse_amount("cpus", arg, 1, VM_MAX_CPUS, &v))
			return HV_EXIT_USAGE;
		o->vm.cpus = v;
		return 0;
	case OPT_MEMORY:
		return parse_memory(o, arg);
	case OPT_CPU:
		o->vm.cpu = arg;
		return 0;
	case OPT_ENGINE:
		return parse_engine(o, arg);
	case OPT_PROFILE:
		return parse_profile(o, arg);
	case OPT_CPU_PIN:
		return parse_cpu_pin(o, arg);
	case OPT_SCHED:
		return parse_sched(o, arg);
	case OPT_CPU_WEIGHT:
		return parse_cpu_weight(o, arg);
	case OPT_CPU_MAX:
		return parse_cpu_max(o, arg);
	case OPT_DISK:
		return parse_disk(o, arg);
	case OPT_NET:
		return parse_net(o, arg);
	case OPT_VFIO:
		return parse_vfio(o, arg);
	case OPT_SERIAL:
		return parse_serial(o, arg);
	case OPT_CONSOLE:
		o->vm.console = arg;
		return 0;
	case OPT_EXIT_PORT:
		if (parse_amount("exit-port", arg, 0, 0xffff, &v))
			return HV_EXIT_USAGE;
		o->vm.exit_port = v;
		return 0;
	case OPT_TESTDEV:
		o->vm.testdev = true;
		return 0;
	case OPT_DEBUGCON:
		o->vm.debugcon = true;
		return 0;
	case OPT_NO_REBOOT:
		o->vm.no_reboot = true;
		return 0;
	case OPT_TIMEOUT:
		if (parse_amount("timeout", arg, 1, 86400 * 365, &v))
			return HV_EXIT_USAGE;
		o->vm.timeout_s = v;
		return 0;
	case OPT_STATS:
		o->stats = true;
		o->vm.sample = true;
		return 0;
	case OPT_CONTROL:
		return parse_control(o, arg);
	case OPT_RESUME:
		o->resume = arg;
		return 0;
	case OPT_PAUSED:
		o->vm.start_paused = true;
		return 0;
	case OPT_LOG:
		if (log_configure(arg, &err) < 0)
			return usage_error("run", "--log: %s", err.msg);
		return 0;
	default:
		return usage_error("run", "the options above are not understood");
	}
}

/* What a fresh VM is when nobody says otherwise; a saved one knows. */
static int settle(struct run_options *o)
{
	if (o->resume)
		return 0;
	if (!o->vm.kernel)
		return usage_error("run", "nothing to boot: name a kernel with --kernel");
	o->vm.cpu = o->vm.cpu ? o->vm.cpu : "max";
	o->vm.cpus = o->vm.cpus ? o->vm.cpus : 1;
	o->vm.memory = o->vm.memory ? o->vm.memory : 512 * MiB;
	if (!o->vm.nr_serials)
		o->vm.serial[o->vm.nr_serials++] = "stdio";
	return 0;
}

int run_options_parse(struct run_options *o, int argc, char **argv, bool *help)
{
	int c, r;

	*help = false;
	*o = (struct run_options){
		.engine = "auto",
		.vm = {.engine_options = "", .exit_port = -1},
	};
	while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
		if (c == 'h') {
			print_help();
			*help = true;
			return 0;
		}
		r = parse_option(o, c, optarg);
		if (r)
			return r;
	}
	if (optind < argc)
		return usage_error("run", "'%s' is not an option", argv[optind]);
	return settle(o);
}
