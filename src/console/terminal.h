/* console/terminal.h - the operator's terminal: raw mode, and the keys that are ours.
 *
 * There is one terminal per process.  It is given back by terminal_restore, at exit, and before one
 * of the usual fatal signals ends the process, where nobody else has a handler for it; whoever
 * installs one calls terminal_restore himself. */
#pragma once

#include "base/types.h"

struct error;

int terminal_raw(int fd, struct error *err);
void terminal_restore(void); /* async-signal-safe; does nothing when not raw */

/* Ctrl-A x: quit; Ctrl-A a: a Ctrl-A for the guest; Ctrl-A h: help. */
enum terminal_action { TERMINAL_NOTHING, TERMINAL_PASS, TERMINAL_QUIT, TERMINAL_HELP };
struct terminal_keys {
	bool after_ctrl_a;
};

/* What does this key mean?  PASS: *key, perhaps changed, is for the guest. */
enum terminal_action terminal_key(struct terminal_keys *k, uint8_t *key);

extern const char terminal_help[];
