/* Fuzz target: a saved VM's file, up to where its state would go into a board.
 *
 * Input: a byte, then the file.  Bit 0: leave the checksums alone; else they are made right, of
 * the file, its records and the streams in them, because an attacker can.  Bit 1: a board with
 * less memory. */
#include "base/bytes.h"
#include "base/error.h"
#include "mem/mem.h"
#include "state/stream.h"
#include "vm/save_config.h"
#include "vm/savefile.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_LEN = 256 * 1024, HEADER = 32, STREAM_MIN = 29 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void seal_stream(uint8_t *p, size_t len)
{
	if (len < STREAM_MIN)
		return;
	memcpy(p, "TRVSTATE", 8);
	le32_store(p + 8, STATE_STREAM_VERSION);
	le32_store(p + 12, 0);
	le64_store(p + 16, len);
	p[len - 5] = 0xff;
	le32_store(p + len - 4, state_crc32c(p, len - 4));
}

static void seal(uint8_t *p, size_t len)
{
	uint32_t number = 0;
	size_t at = HEADER;

	if (len < HEADER)
		return;
	memcpy(p, "TRVSAVED", 8);
	le32_store(p + 8, SAVE_VERSION);
	le32_store(p + 28, state_crc32c(p, 28));
	while (len - at >= HEADER) {
		uint8_t *rec = p + at, *payload = rec + HEADER;
		uint32_t kind = le32_load(rec);
		size_t n = MIN(le32_load(rec + 20), len - at - HEADER);

		if (kind == SAVE_CONFIG || kind == SAVE_STATE)
			seal_stream(payload, n);
		le32_store(rec + 4, number++);
		le32_store(rec + 20, (uint32_t)n);
		le32_store(rec + 24, state_crc32c(payload, n));
		le32_store(rec + 28, state_crc32c(rec, 28));
		at += HEADER + n;
	}
}

static int read_config(struct save_reader *r, struct error *err)
{
	static struct saved_config c;
	struct state_reader s;
	uint8_t *buf;
	size_t len;
	int e = save_reader_get(r, SAVE_CONFIG, &buf, &len, err);

	if (e < 0)
		return e;
	memset(&c, 0, sizeof(c));
	state_reader_init(&s, buf, len, err);
	saved_config_state(&s.state, &c);
	e = state_reader_finish(&s);
	free(buf);
	if (e == 0) { /* what was accepted can be relied on */
		assert(c.cpus >= 1 && c.cpus <= VM_MAX_CPUS && c.nr_disks <= VM_MAX_DISKS);
		assert(memchr(c.engine, 0, sizeof(c.engine)) && !strchr(c.disk[0].file, '/'));
		(void)cpu_model_check(&c.model, err);
	}
	return e;
}

static int read_all(struct save_reader *r, struct mem *mem, struct error *err)
{
	uint8_t *buf;
	size_t len;
	int e = read_config(r, err);

	if (e == 0)
		e = save_reader_ram(r, mem, NULL, err);
	if (e < 0)
		return e;
	e = save_reader_get(r, SAVE_STATE, &buf, &len, err);
	if (e < 0)
		return e;
	free(buf);
	return save_reader_end(r, err);
}

static int make_file(const uint8_t *data, size_t size, bool sealed)
{
	int fd = memfd_create("saved", MFD_CLOEXEC);
	uint8_t *copy = malloc(size);

	if (fd < 0 || !copy)
		abort();
	memcpy(copy, data, size);
	if (sealed)
		seal(copy, size);
	if (write(fd, copy, size) != (ssize_t)size || lseek(fd, 0, SEEK_SET) != 0)
		abort();
	free(copy);
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct error err = {""};
	struct save_reader *r;
	struct mem *mem;
	uint8_t how;
	int e;

	if (size < 2 || size > MAX_LEN)
		return 0;
	how = *data++;
	size--;
	if (mem_create(&mem, NULL) < 0 || mem_add_ram(mem, 0, 0xa0000, NULL) < 0 ||
	    mem_add_ram(mem, 0x100000, how & 2 ? 0x100000 : 0xf00000, NULL) < 0)
		abort();
	e = save_reader_fd(&r, make_file(data, size, !(how & 1)), "input", &err);
	if (e == 0) {
		e = read_all(r, mem, &err);
		save_reader_close(r);
	}
	assert(e == 0 || err.msg[0]);
	mem_destroy(mem);
	return 0;
}
