/* devices/debug/debugcon.h - the debug console port that hobby systems and firmware print to.
 *
 * A byte written goes to the chardev; reading gives 0xE9, which is how software detects it.  What
 * the host end has no room for is lost: the port has no way to say "wait".
 *
 * create does not take chr.  Any thread.  Spec followed: the port E9 convention of Bochs. */
#pragma once

#include "base/types.h"

struct bus;
struct chardev;
struct debugcon;
struct error;

struct debugcon_config {
	struct bus *bus;
	uint16_t port; /* 0xe9 */
	struct chardev *chr;
};

int debugcon_create(struct debugcon **out, const struct debugcon_config *cfg, struct error *err);
void debugcon_destroy(struct debugcon *d);
