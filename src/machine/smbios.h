/* machine/smbios.h - the SMBIOS 3.0 entry point and structures, as one image.
 * Pure function of the configuration.  Spec: DMTF DSP0134 3.6. */
#pragma once

#include "base/types.h"

struct error;

struct smbios_config {
	unsigned nr_cpus;
	uint64_t below_4g, above_4g; /* bytes of RAM */
	uint8_t uuid[16];            /* of the VM, in the byte order SMBIOS wants */
	const char *version;         /* of Trivisor */
};

/* buf will be at guest-physical `gpa` (16-byte aligned); the entry point comes first.
 * Returns bytes used, or -ENOSPC with a sentence. */
int smbios_build(uint8_t *buf, size_t cap, uint32_t gpa, const struct smbios_config *cfg,
		 struct error *err);
