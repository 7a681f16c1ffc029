/* fuzz_rescue_map.c - a map file of ddrescue's: what is understood covers the disk without gaps,
 * and is the same when it is written and read again. */
#include "block/rescue_map.h"

#include "base/error.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { DISK = 1 << 20 };

static void expect(bool good)
{
	if (!good)
		abort();
}

static void check_runs(const struct rescue_map *m)
{
	size_t runs = 0;
	uint64_t at = 0;

	for (uint64_t start, end; at < DISK; at = end, runs++) {
		expect(strchr("?*/-+", rescue_map_around(m, at, &start, &end)));
		expect(start == at && end > at && end <= DISK);
	}
	expect(at == DISK && runs == rescue_map_runs(m));
}

static void check_again(const struct rescue_map *m)
{
	struct rescue_map *again;
	char *text;
	size_t len;

	expect(rescue_map_print(m, "disk", &text, &len) == 0);
	expect(rescue_map_parse(&again, text, len, DISK, "disk", "m", NULL) == 0);
	expect(rescue_map_runs(m) == rescue_map_runs(again));
	expect(rescue_map_count(m, RESCUE_FINISHED) == rescue_map_count(again, RESCUE_FINISHED));
	expect(rescue_map_count(m, RESCUE_BAD) == rescue_map_count(again, RESCUE_BAD));
	rescue_map_free(again);
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rescue_map *m;
	struct error err = {""};

	if (rescue_map_parse(&m, (const char *)data, size, DISK, "disk", "m", &err) < 0) {
		expect(err.msg[0]);
		return 0;
	}
	check_runs(m);
	check_again(m);
	rescue_map_free(m);
	return 0;
}
