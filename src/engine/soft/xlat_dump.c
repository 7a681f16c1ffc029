/* engine/soft/xlat_dump.c - what was made of a block, for people and for perf.
 *
 * --engine soft,dump=FILE writes each block: guest instructions, and under each the host's.
 * --engine soft,perf=FILE writes perf's map of symbols (/tmp/perf-PID.map is where perf looks).
 * The host's code is read back with our own decoder, as 64-bit code with every feature. */
#include "engine/soft/xlat_int.h"

#include "base/error.h"
#include "engine/cpu_model.h"
#include "engine/soft/vec.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static int open_file(const char *name, int *fd, struct error *err)
{
	*fd = -1;
	if (!name)
		return 0;
	*fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	return *fd < 0 ? err_errno(err, errno, "engine soft: %s", name) : 0;
}

int xlat_dump_open(struct xlat *x, struct error *err)
{
	int r = open_file(x->cfg.dump, &x->dump_fd, err);

	if (!r)
		r = open_file(x->cfg.perf, &x->perf_fd, err);
	if (r < 0)
		xlat_dump_close(x);
	return r;
}

void xlat_dump_close(struct xlat *x)
{
	if (x->dump_fd >= 0)
		close(x->dump_fd);
	if (x->perf_fd >= 0)
		close(x->perf_fd);
}

static void dump_host(struct xlat *x, uint32_t from, uint32_t to)
{
	while (from < to) {
		struct insn in;
		char text[160];

		if (insn_decode(&in, x->rw + from, to - from, INSN_MODE_64, x->cpu->vm->model) !=
		    INSN_OK) {
			dprintf(x->dump_fd, "\t\t%06x  %02x ...\n", from, x->rw[from]);
			return;
		}
		insn_print(&in, from, text, sizeof(text));
		dprintf(x->dump_fd, "\t\t%06x  %s\n", from, text);
		from += in.len;
	}
}

static void dump_listing(struct xlat *x, const struct xblock *xb)
{
	static const char *const flags[] = {"not read", "in host", "in memory"};
	uint64_t rip = xb->lin;

	dprintf(x->dump_fd, "block %#llx, %u instructions, flags %s, code %#x\n",
		(unsigned long long)xb->lin, xb->nr, flags[xb->flags_in], xb->code);
	dump_host(x, xb->code, xb->code + xb->site[0].host);
	for (unsigned i = 0; i < xb->nr; i++) {
		const struct insn *in = &xb->b->insns[i];
		char text[160];

		insn_print(in, rip, text, sizeof(text));
		dprintf(x->dump_fd, "\t%llx  %s\n", (unsigned long long)rip, text);
		rip += in->len;
		dump_host(x, xb->code + xb->site[i].host,
			  i + 1 < xb->nr ? xb->code + xb->site[i + 1].host : xb->code_end);
	}
}

void xlat_dump_block(struct xlat *x, const struct xblock *xb)
{
	vec_release(x->cpu);
	if (x->dump_fd >= 0)
		dump_listing(x, xb);
	if (x->perf_fd >= 0)
		dprintf(x->perf_fd, "%llx %x guest_%llx\n",
			(unsigned long long)(uintptr_t)x_rx(x, xb->code), xb->code_end - xb->code,
			(unsigned long long)xb->lin);
}
