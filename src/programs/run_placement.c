/* run_placement.c - see run_placement.h. */
#include "programs/run_placement.h"

#include "programs/hv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- memory ----------------------------------------------------------------------------------- */

static int parse_memory_size(struct run_options *o, const char *arg)
{
	uint64_t bytes;

	if (parse_size(arg, MiB, &bytes) < 0 || bytes < MiB || bytes % MiB || bytes > 4096 * GiB)
		return usage_error("run", "--memory: '%s' is not a size such as 512M or 2G", arg);
	o->vm.memory = bytes;
	return 0;
}

/* on = the size this host uses by default, which on x86-64 is 2 MiB unless it was booted otherwise.
 */
static int parse_huge_pages(struct run_options *o, const char *value)
{
	uint64_t size;

	if (!strcmp(value, "off"))
		o->vm.huge_page = 0;
	else if (!strcmp(value, "on"))
		o->vm.huge_page = 2 * MiB;
	else if (parse_size(value, 1, &size) == 0 && (size == 2 * MiB || size == GiB))
		o->vm.huge_page = size;
	else
		return usage_error("run", "--memory: hugepages='%s' is not off, on, 2M or 1G",
				   value);
	return 0;
}

/* "0", "0-1", "0+2": a comma would end the option. */
static int parse_nodes(struct run_options *o, char *value)
{
	struct host_cpus nodes; /* the same list format */
	struct error err;

	for (char *p = value; *p; p++)
		*p = *p == '+' ? ',' : *p;
	if (host_cpus_parse(&nodes, value, &err) < 0)
		return usage_error(
			"run", "--memory: numa='%s' is not a list of nodes such as 0-1+3", value);
	o->vm.hold.nodes = nodes.bits[0];
	for (size_t i = 1; i < ARRAY_SIZE(nodes.bits); i++)
		if (nodes.bits[i])
			return usage_error("run", "--memory: numa: nodes are 0 to 63");
	if (o->vm.hold.numa == MEM_NUMA_NONE)
		o->vm.hold.numa = MEM_NUMA_BIND;
	return 0;
}

static int parse_numa_policy(struct run_options *o, const char *value)
{
	static const char *const names[] = {
		[MEM_NUMA_BIND] = "bind",
		[MEM_NUMA_PREFER] = "prefer",
		[MEM_NUMA_INTERLEAVE] = "interleave",
	};

	for (unsigned i = MEM_NUMA_BIND; i < ARRAY_SIZE(names); i++)
		if (!strcmp(value, names[i])) {
			o->vm.hold.numa = i;
			return 0;
		}
	return usage_error("run", "--memory: numa-policy='%s' is not bind, prefer or interleave",
			   value);
}

static int parse_memory_switch(const char *key, const char *value, bool *on)
{
	if (strcmp(value, "on") && strcmp(value, "off"))
		return usage_error("run", "--memory: %s is on or off, not '%s'", key, value);
	*on = !strcmp(value, "on");
	return 0;
}

static int parse_memory_key(struct run_options *o, const char *key, char *value)
{
	if (!strcmp(key, "size"))
		return parse_memory_size(o, value);
	if (!strcmp(key, "hugepages"))
		return parse_huge_pages(o, value);
	if (!strcmp(key, "numa"))
		return parse_nodes(o, value);
	if (!strcmp(key, "numa-policy"))
		return parse_numa_policy(o, value);
	if (!strcmp(key, "prealloc"))
		return parse_memory_switch(key, value, &o->vm.hold.prealloc);
	if (!strcmp(key, "lock"))
		return parse_memory_switch(key, value, &o->vm.hold.lock);
	return usage_error("run",
			   "--memory: '%s' is not known; use hugepages, prealloc, lock, numa or "
			   "numa-policy",
			   key);
}

/* SIZE,key=value,...; SIZE may be left out, as a saved VM knows its own. */
int parse_memory(struct run_options *o, char *arg)
{
	int r = 0;

	for (char *word, *rest = arg; r == 0 && (word = strsep(&rest, ","));) {
		char *value = strchr(word, '=');

		if (value)
			*value++ = 0;
		if (value)
			r = parse_memory_key(o, word, value);
		else if (word == arg)
			r = parse_memory_size(o, word);
		else
			r = usage_error("run", "--memory: '%s' needs a value", word);
	}
	if (r == 0 && o->vm.hold.numa != MEM_NUMA_NONE && !o->vm.hold.nodes)
		r = usage_error("run", "--memory: numa-policy needs numa=NODES");
	return r;
}

/* --- CPUs ------------------------------------------------------------------------------------- */

static int parse_host_cpus(const char *text, struct host_cpus *c)
{
	struct error err;

	if (host_cpus_parse(c, text, &err) < 0 || host_cpus_check(c, &err) < 0)
		return usage_error("run", "--cpu-pin: %s", err.msg);
	return 0;
}

/* LIST alone: one CPU of it for each virtual CPU, in order. */
static int pin_each(struct run_options *o, const char *list)
{
	struct host_cpus cpus;
	int r = parse_host_cpus(list, &cpus);

	o->pinned = r ? 0 : host_cpus_count(&cpus);
	for (unsigned i = 0; i < MIN(o->pinned, VM_MAX_CPUS); i++) {
		o->vm.pin[i] = (struct host_cpus){0};
		host_cpus_set(&o->vm.pin[i], host_cpus_nth(&cpus, i));
	}
	return r;
}

/* VCPUS=LIST: each of these may run anywhere in the list.  VCPUS is a list too, or all. */
int parse_cpu_pin(struct run_options *o, char *arg)
{
	char *list = strchr(arg, '=');
	struct host_cpus which = {.bits = {~0ull}}, cpus;
	struct error err;
	int r;

	if (!list)
		return pin_each(o, arg);
	*list++ = 0;
	if (strcmp(arg, "all") && host_cpus_parse(&which, arg, &err) < 0)
		return usage_error("run", "--cpu-pin: %s", err.msg);
	r = parse_host_cpus(list, &cpus);
	for (unsigned i = 0; r == 0 && i < HOST_MAX_CPUS; i++) {
		if (!host_cpus_has(&which, i))
			continue;
		if (i >= VM_MAX_CPUS)
			return usage_error("run", "--cpu-pin: there is no virtual CPU %u", i);
		o->vm.pin[i] = cpus;
		if (strcmp(arg, "all"))
			o->pin_highest = MAX(o->pin_highest, i);
	}
	return r;
}

int parse_sched(struct run_options *o, const char *arg)
{
	struct error err;

	if (host_sched_parse(&o->vm.sched, arg, &err) < 0)
		return usage_error("run", "--sched: %s", err.msg);
	return 0;
}

int parse_cpu_weight(struct run_options *o, const char *arg)
{
	uint64_t v;

	if (parse_number(arg, 10000, &v) < 0 || !v)
		return usage_error("run", "--cpu-weight: '%s' is not a number from 1 to 10000",
				   arg);
	o->share.weight = v;
	return 0;
}

int parse_cpu_max(struct run_options *o, const char *arg)
{
	char digits[16];
	size_t n = strlen(arg);
	uint64_t v;

	if (n && n < sizeof(digits)) {
		memcpy(digits, arg, n + 1);
		if (digits[n - 1] == '%')
			digits[n - 1] = 0;
		if (parse_number(digits, 100 * HOST_MAX_CPUS, &v) == 0 && v) {
			o->share.percent = v;
			return 0;
		}
	}
	return usage_error("run", "--cpu-max: '%s' is not a percentage of one CPU such as 150%%",
			   arg);
}

int placement_check(const struct run_options *o)
{
	if (o->pinned && o->pinned < o->vm.cpus)
		return usage_error("run", "--cpu-pin names %u CPUs for %u virtual CPUs", o->pinned,
				   o->vm.cpus);
	if (o->pin_highest >= o->vm.cpus)
		return usage_error("run", "--cpu-pin: there is no virtual CPU %u: the VM has %u",
				   o->pin_highest, o->vm.cpus);
	return 0;
}
