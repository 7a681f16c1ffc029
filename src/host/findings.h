/* host/findings.h - what the facts about a host mean for virtual machines, and what to do about it.
 *
 * Pure functions over struct host_facts; any thread. */
#pragma once

#include "host/facts.h"

enum finding_verdict {
	FINDING_OK,
	FINDING_INFO, /* something is not there that only some guests need */
	FINDING_WARN, /* works, but slower or with less room than it should */
	FINDING_BAD,  /* keeps guests from hardware speed, or from running */
};

struct finding {
	const char *section, *id; /* constants; id is stable, for scripts */
	enum finding_verdict verdict;
	char state[200];  /* what is */
	char advice[240]; /* what to do, one line; "" when nothing is to be done */
};

enum { HOST_MAX_FINDINGS = 32 };

/* Fills out[] in the order of display; returns how many there are. */
unsigned host_findings(const struct host_facts *f, struct finding out[HOST_MAX_FINDINGS]);
enum finding_verdict host_worst(const struct finding *list, unsigned n);
const char *finding_verdict_name(enum finding_verdict v); /* "ok", "info", "warn", "bad" */
