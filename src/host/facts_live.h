/* host/facts_live.h - the facts that only the running system can give; called by host_facts_gather
 * alone, and as single-threaded as it is. */
#pragma once

#include "host/facts.h"

void host_facts_live(struct host_facts *f);
