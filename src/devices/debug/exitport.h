/* devices/debug/exitport.h - a port by which a guest ends the program with a status.
 *
 * Writing v calls .exit with (v << 1) | 1, so no value can look like success by accident.  Four
 * ports wide; reads give 0.  .exit runs on the vCPU's thread and must not wait for that vCPU.
 *
 * Spec followed: the "isa-debug-exit" convention of test kernels. */
#pragma once

#include "base/types.h"

struct bus;
struct error;
struct exitport;

struct exitport_config {
	struct bus *bus;
	uint16_t port; /* 0xf4 by convention */
	void (*exit)(void *opaque, int status);
	void *opaque;
};

int exitport_create(struct exitport **out, const struct exitport_config *cfg, struct error *err);
void exitport_destroy(struct exitport *e);
