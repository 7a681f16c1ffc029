/* engine/cpu_model_impl.h - for cpu_model*.c only. */
#pragma once

#include "engine/cpu_model.h"

/* Can this host have f, on a CPU of the model's maker? */
bool cpu_model_possible(const struct cpu_model *m, enum cpu_feature f);
/* Has every feature what it needs? */
bool cpu_model_consistent(const struct cpu_model *m);
/* XCR0 and the sizes that follow from the features. */
void cpu_model_settle(struct cpu_model *m);
