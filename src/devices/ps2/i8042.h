/* devices/ps2/i8042.h - the PC keyboard controller with a keyboard and no mouse.
 *
 * Ports 60h and 64h, and the fast A20 / reset port 92h.  The reset callback runs on the vCPU's
 * thread with no lock held.  A20 is reported to a20() and otherwise only remembered.
 *
 * Keys come from i8042_key, any thread.  Spec followed: IBM PS/2 Hardware Interface Technical
 * Reference, "Keyboard and Auxiliary Device Controller" and "Keyboards (101- and 102-Key)". */
#pragma once

#include "base/types.h"
#include "bus/irq.h"

struct bus;
struct error;
struct i8042;
struct state;

struct i8042_config {
	struct bus *bus;
	struct irq_line irq; /* ISA 1 */
	void (*reset)(void *opaque);
	void (*a20)(void *opaque, bool on); /* optional */
	void *opaque;
};

int i8042_create(struct i8042 **out, const struct i8042_config *cfg, struct error *err);
void i8042_destroy(struct i8042 *k);
void i8042_reset(struct i8042 *k);
void i8042_state(struct state *s, void *i8042);

/* A key went down or up.  key is its set-1 make code (01..7f), with I8042_EXTENDED for those that
 * have an E0 before it.  Keys beyond what the keyboard's buffer holds are lost, as on the real one.
 * False: the guest has not enabled the keyboard. */
enum { I8042_EXTENDED = 0xe000 };
bool i8042_key(struct i8042 *k, unsigned key, bool down);
/* What Caps Lock and the like show: bit 0 Scroll, 1 Num, 2 Caps. */
unsigned i8042_leds(struct i8042 *k);
