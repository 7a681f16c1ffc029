/* engine/cpu_model_state.c - a CPU model from and to a saved VM; see cpu_model.h. */
#include "engine/cpu_model_impl.h"

#include "base/error.h"
#include "engine/x86_defs.h"
#include "state/state.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { FEATURE_NAME_LEN = 32, NAMES_SHOWN = 8 };

static const uint8_t components[] = {2, 5, 6, 7, 9}; /* of XCR0, with a place that makers chose */

/* ---- features by name ---- */

static int feature_find(const char *name)
{
	for (int f = 0; f < CPU_NR_FEATURES; f++)
		if (!strcmp(cpu_feature_name(f), name))
			return f;
	return -1;
}

static uint32_t count_features(const uint64_t *features)
{
	uint32_t n = 0;

	for (int f = 0; f < CPU_NR_FEATURES; f++)
		n += features[f / 64] >> f % 64 & 1;
	return n;
}

int cpu_features_print(const uint64_t *features, char *buf, size_t len)
{
	uint32_t nr = count_features(features), shown = 0;
	size_t used = 0;

	if (len)
		buf[0] = '\0';
	for (int f = 0; f < CPU_NR_FEATURES && shown < NAMES_SHOWN; f++) {
		if (!(features[f / 64] >> f % 64 & 1))
			continue;
		used += (size_t)snprintf(used < len ? buf + used : NULL,
					 used < len ? len - used : 0, "%s%s", shown ? ", " : "",
					 cpu_feature_name(f));
		shown++;
	}
	if (nr > shown)
		used += (size_t)snprintf(used < len ? buf + used : NULL,
					 used < len ? len - used : 0, " and %u more", nr - shown);
	return (int)used;
}

static void save_features(struct state *s, const struct cpu_model *m)
{
	for (int f = 0; f < CPU_NR_FEATURES; f++) {
		char name[FEATURE_NAME_LEN] = "";

		if (!cpu_has(m, f))
			continue;
		assert(strlen(cpu_feature_name(f)) < sizeof(name));
		memcpy(name, cpu_feature_name(f), strlen(cpu_feature_name(f)));
		state_bytes(s, "feature", name, sizeof(name));
	}
}

static bool is_text(const char *p, size_t len)
{
	size_t n = strnlen(p, len);

	for (size_t i = 0; i < n; i++)
		if (!isprint((unsigned char)p[i]))
			return false;
	return n < len;
}

static void load_features(struct state *s, struct cpu_model *m, uint32_t nr)
{
	memset(m->features, 0, sizeof(m->features));
	for (uint32_t i = 0; i < nr && state_loading(s); i++) {
		char name[FEATURE_NAME_LEN] = "", what[96];
		int f;

		state_bytes(s, "feature", name, sizeof(name));
		state_check(s, is_text(name, sizeof(name)), "CPU feature");
		if (!state_loading(s))
			return;
		f = feature_find(name);
		snprintf(what, sizeof(what), "CPU feature '%s' is not known to this build", name);
		state_check(s, f >= 0, what);
		if (f >= 0)
			m->features[f / 64] |= BIT(f % 64);
	}
}

/* ---- the model ---- */

static void text(struct state *s, const char *name, char *p, size_t len)
{
	state_bytes(s, name, p, len);
	state_check(s, is_text(p, len), "CPU model: a name");
	if (s->loading && s->failed)
		p[0] = '\0';
}

static void numbers(struct state *s, struct cpu_model *m)
{
	state_u32(s, "family", &m->family);
	state_u32(s, "model", &m->model);
	state_u32(s, "stepping", &m->stepping);
	state_u32(s, "phys_bits", &m->phys_bits);
	state_u32(s, "virt_bits", &m->virt_bits);
	state_check(s, m->family <= 15 + 255 && m->model <= 255 && m->stepping <= 15,
		    "CPU signature");
	state_check(s, m->phys_bits >= 32 && m->phys_bits <= 52, "CPU address bits");
}

/* Where the guest was told its vector state is, which is where the host's XSAVE puts it. */
static void layout(struct state *s, struct cpu_model *m)
{
	for (size_t i = 0; i < sizeof(components); i++) {
		uint32_t offset = 0, size, there;

		cpu_xsave_component(components[i], &offset, &size);
		there = offset;
		state_u32(s, "xsave_offset", &there);
		if (m->xcr0_supported >> components[i] & 1)
			state_check(s, there == offset,
				    "the CPU it was saved on keeps vector state in another layout "
				    "than this host's; only VMs run with --cpu base can move "
				    "between such hosts");
	}
}

void cpu_model_state(struct state *s, struct cpu_model *m)
{
	uint32_t nr = count_features(m->features);

	state_enter(s, "cpu-model", 1);
	text(s, "name", m->name, sizeof(m->name));
	text(s, "vendor", m->vendor, sizeof(m->vendor));
	text(s, "brand", m->brand, sizeof(m->brand));
	numbers(s, m);
	state_u32(s, "nr_features", &nr);
	state_check(s, nr <= 4096, "CPU features");
	if (s->loading)
		load_features(s, m, nr);
	else
		save_features(s, m);
	if (s->loading)
		cpu_model_settle(m);
	state_check(s, cpu_model_consistent(m), "CPU features that need others");
	layout(s, m);
	state_leave(s);
}

int cpu_model_check(const struct cpu_model *m, struct error *err)
{
	uint64_t lacks[ARRAY_SIZE(m->features)] = {0};
	char names[256];

	for (int f = 0; f < CPU_NR_FEATURES; f++)
		if (cpu_has(m, f) && !cpu_model_possible(m, f))
			lacks[f / 64] |= BIT(f % 64);
	if (!count_features(lacks))
		return 0;
	cpu_features_print(lacks, names, sizeof(names));
	return err_set(
		err, ENOTSUP,
		"the guest has seen CPU features that this host lacks: %s (a VM started with "
		"--cpu base runs everywhere)",
		names);
}
