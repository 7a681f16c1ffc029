/* machine/irqchip/remote.h - the board's side of interrupt chips that the engine keeps.
 *
 * Messages and wires are passed on to the engine; the board's own chips become copies by which a
 * state is saved and loaded.  Where the engine keeps none, everything here does nothing.
 * For the files of machine/ only.  All calls with all vCPUs outside the engine, but remote_msi. */
#pragma once

#include "machine/pc.h"

void remote_connect(struct machine *m, const struct engine *e, struct engine_vm *evm);

static inline bool remote_lapics(const struct machine *m)
{
	return m->chips != ENGINE_CHIPS_NONE;
}
void remote_msi(struct machine *m, uint64_t addr, uint32_t data); /* any thread */

/* The engine's registers into ours; and ours into the engine's. */
void remote_pull(struct machine *m);
int remote_push(struct machine *m, struct error *err);

/* The board's clock stands and goes again: timers in the engine's chips, and its kvm-clock. */
void remote_pause(struct machine *m);
void remote_resume(struct machine *m);
