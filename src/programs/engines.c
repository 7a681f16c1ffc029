/* engines.c - the engines this build has, and which one --engine means. */
#include "host/kvm_probe.h"
#include "programs/hv.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

const struct engine *const hv_engines[] = {&engine_kvm, &engine_soft, NULL};

const struct engine *engine_find(const char *name)
{
	for (unsigned i = 0; hv_engines[i]; i++)
		if (!strcmp(hv_engines[i]->name, name))
			return hv_engines[i];
	return NULL;
}

/* kvm where it is at hardware speed, which is measured, and soft elsewhere; *why says which. */
static const struct engine *engine_auto(const char **why)
{
	static char reason[160];
	const struct engine *kvm = engine_find("kvm");
	struct kvm_probe p;

	*why = reason;
	kvm_probe(KVM_DEVICE, &p);
	kvm_probe_describe(&p, reason, sizeof(reason));
	if (p.state == KVM_PROBE_FAST && kvm)
		return kvm;
	if (p.state == KVM_PROBE_FAST)
		*why = "this build has no kvm engine";
	return engine_find("soft");
}

/* The names for a message: "auto, kvm or soft". */
static const char *engine_names(void)
{
	return engine_find("kvm") ? "auto, kvm or soft" : "auto or soft";
}

const struct engine *engine_choose(const char *name, const char **why, struct error *err)
{
	const struct engine *e;

	*why = "asked for";
	e = strcmp(name, "auto") ? engine_find(name) : engine_auto(why);
	if (!e && !strcmp(name, "kvm"))
		err_set(err, ENOTSUP, "the kvm engine is not in this build; use --engine soft");
	else if (!e)
		err_set(err, EINVAL, "there is no engine '%s'; use %s", name, engine_names());
	if (!e || e->probe(err) < 0)
		return NULL;
	return e;
}
