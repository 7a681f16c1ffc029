/* engines.c - the engines this build has, and which one --engine means. */
#include "programs/hv.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

const struct engine *const hv_engines[] = {&engine_soft, NULL};

static const struct engine *engine_find(const char *name)
{
	for (unsigned i = 0; hv_engines[i]; i++)
		if (!strcmp(hv_engines[i]->name, name))
			return hv_engines[i];
	return NULL;
}

/* Why "auto" did not take hardware virtualization, for the person who expected it. */
static const char *no_hardware_reason(void)
{
	if (access("/dev/kvm", F_OK))
		return "no /dev/kvm";
	return "this build has no kvm engine";
}

const struct engine *engine_choose(const char *name, const char **why, struct error *err)
{
	bool any = !strcmp(name, "auto");
	const struct engine *e = engine_find(any ? "soft" : name);

	if (!e) {
		if (!strcmp(name, "kvm"))
			err_set(err, ENOTSUP,
				"the kvm engine is not in this build; use --engine soft");
		else
			err_set(err, EINVAL, "there is no engine '%s'; use auto or soft", name);
		return NULL;
	}
	if (e->probe(err) < 0)
		return NULL;
	*why = any ? no_hardware_reason() : "asked for";
	return e;
}
