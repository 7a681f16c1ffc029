/* control/client.h - the other end of a control socket, for `hv control`.
 *
 * Blocking, one thread.  The server is believed no more than any peer: lines are bounded. */
#pragma once

#include "base/types.h"

#include <stdio.h>

struct control_client;
struct error;

int control_client_open(struct control_client **out, const char *path, struct error *err);
void control_client_close(struct control_client *c); /* NULL is fine */

enum control_print { CONTROL_PLAIN, CONTROL_JSON };

/* Runs a command with "key=value" arguments and prints what it returns.  Events that come before
 * the answer go to `events` (NULL: nowhere).  -EREMOTEIO: the VM refused, err has its words. */
int control_client_run(struct control_client *c, const char *command, char *const *args,
		       unsigned nr_args, enum control_print how, FILE *out, FILE *events,
		       struct error *err);
/* Prints events until the VM has ended or hung up. */
int control_client_follow(struct control_client *c, enum control_print how, FILE *out,
			  struct error *err);
