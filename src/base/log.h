/* base/log.h - what the process tells its operator, on standard error.
 *
 * A component is one `static struct log_component log_xxx = LOG_COMPONENT("xxx");` per file.
 * Levels are chosen at run time (`--log qcow2=debug,ahci=trace` or `--log debug`).  Whatever a
 * guest can trigger goes through log_guest(), which is rate-limited per call site.
 * Any thread. */
#pragma once

#include "base/types.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

struct log_component {
	const char *name;
	int level;    /* -1 until first use, then resolved from the settings */
	uint32_t gen; /* settings generation the level was resolved at */
};

#define LOG_COMPONENT(n) ((struct log_component){.name = (n), .level = -1})

struct log_limit {
	uint64_t window_ns; /* start of the current one-second window */
	uint32_t said, lost;
};

bool log_enabled(struct log_component *c, enum log_level level);
void log_write(struct log_component *c, enum log_level level, const char *fmt, ...)
	PRINTF_LIKE(3, 4);
bool log_limit_ok(struct log_limit *l);

/* Parse "component=level,..." or "level".  Returns 0 or -EINVAL with the reason in err. */
struct error;
int log_configure(const char *spec, struct error *err);

#define log_at(c, lvl, ...)                                                                        \
	do {                                                                                       \
		if (log_enabled((c), (lvl)))                                                       \
			log_write((c), (lvl), __VA_ARGS__);                                        \
	} while (0)
#define log_error(c, ...) log_at(c, LOG_ERROR, __VA_ARGS__)
#define log_warn(c, ...)  log_at(c, LOG_WARN, __VA_ARGS__)
#define log_info(c, ...)  log_at(c, LOG_INFO, __VA_ARGS__)
#define log_debug(c, ...) log_at(c, LOG_DEBUG, __VA_ARGS__)
#define log_trace(c, ...) log_at(c, LOG_TRACE, __VA_ARGS__)

/* For anything a guest can cause: at most ten lines a second from one call site. */
#define log_guest(c, ...)                                                                          \
	do {                                                                                       \
		static struct log_limit limit_;                                                    \
		if (log_enabled((c), LOG_WARN) && log_limit_ok(&limit_))                           \
			log_write((c), LOG_WARN, __VA_ARGS__);                                     \
	} while (0)
