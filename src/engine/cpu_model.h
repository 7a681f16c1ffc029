/* engine/cpu_model.h - what CPUID tells the guest, from one table of named features.
 *
 * `base` is x86-64-v2 with what every host of the last ten years has; `max` is all that this host
 * offers and we implement.  A model is resolved once per VM (cpu_model_resolve) and shared
 * read-only by every engine and vCPU after that. */
#pragma once

#include "base/types.h"

struct error;

/* Every feature bit we know, one name each, as in /proc/cpuinfo.  Generated from the table in
 * engine/cpu_features.def: X(name, leaf, subleaf, register, bit, ...). */
enum cpu_feature {
#define X(id, name, leaf, sub, reg, bit, flags) CPU_FEAT_##id,
#include "engine/cpu_features.def"
#undef X
	CPU_NR_FEATURES
};

struct cpu_model {
	char name[32];
	uint64_t features[(CPU_NR_FEATURES + 63) / 64];
	uint64_t xcr0_supported; /* XCR0 bits the guest may set */
	uint32_t xsave_size;     /* of the standard area with all of them */
	uint32_t phys_bits, virt_bits;
	char vendor[13], brand[49];
	uint32_t family, model, stepping;
};

static inline bool cpu_has(const struct cpu_model *m, enum cpu_feature f)
{
	return m->features[f / 64] >> (f % 64) & 1;
}

/* AMD and its licensees: where the makers' rules differ.  Inline and without libc: the soft engine
 * asks while guest vector state is in the host's registers. */
static inline bool cpu_model_is_amd(const struct cpu_model *m)
{
	return m->vendor[0] == 'A' || m->vendor[0] == 'H'; /* AuthenticAMD, HygonGenuine */
}

/* spec: "max", "base", "base,+avx2,-aes".  An unknown name or a feature this host cannot run is
 * refused with a sentence that names it. */
int cpu_model_resolve(struct cpu_model *m, const char *spec, struct error *err);

/* Remove those of `lacks` (as long as m->features) and what needs them, for an engine that cannot
 * give them: engine.cpu_lacks.  A feature that `spec` asked for by name, or that belongs to another
 * model than max, is refused instead. */
int cpu_model_fit(struct cpu_model *m, const char *spec, const uint64_t *lacks, struct error *err);

/* Where a component of XCR0 is in the standard XSAVE area of this host's maker; false: none such.
 * And the bytes of that area when the components of xcr0 are in use. */
bool cpu_xsave_component(unsigned component, uint32_t *offset, uint32_t *size);
uint32_t cpu_xsave_size(uint64_t xcr0);
uint32_t cpu_xsave_compacted_size(uint64_t xcr0); /* as XSAVEC and XSAVES write it */

/* One CPUID answer before per-CPU and machine corrections; regs: eax ebx ecx edx. */
void cpu_model_cpuid(const struct cpu_model *m, uint32_t leaf, uint32_t sub, uint32_t regs[4]);

/* A saved VM carries the model its guest has seen, features by name.  What was loaded is checked to
 * be some model; cpu_model_check says whether this host can be it, naming what it lacks. */
struct state;
void cpu_model_state(struct state *s, struct cpu_model *m);
int cpu_model_check(const struct cpu_model *m, struct error *err);

/* "avx2, bmi1 and 3 more" of a bitmap as long as cpu_model.features; the length as snprintf. */
int cpu_features_print(const uint64_t *features, char *buf, size_t len);

/* For `hv cpu list`: the models, and the features with what the host says. */
struct cpu_model_info {
	const char *name, *summary;
};
unsigned cpu_model_list(const struct cpu_model_info **out);
const char *cpu_feature_name(enum cpu_feature f);
bool cpu_feature_on_host(enum cpu_feature f);
