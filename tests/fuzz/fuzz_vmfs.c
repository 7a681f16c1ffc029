/* A device of somebody else that is said to hold a VMFS volume: opened, listed, read, examined.
 *
 * Input as in fuzz_image.h; the first byte: bit 0 opens by a plan instead of by the headers, bits 1
 * and 2 choose its version. */
#include "fuzz_image.h"

#include "vmfs/vmfs.h"

enum { BUDGET = 1500, DEPTH = 4, RANGES = 24 };

struct walk {
	struct vmfs *v;
	unsigned depth;
	unsigned left; /* entries and blocks that may still be looked at */
};

static bool no_more(void *opaque)
{
	unsigned *left = opaque;

	return *left == 0 || --*left == 0;
}

static void look_at_file(struct walk *w, const struct vmfs_inode *in)
{
	static uint8_t buf[5000];
	struct vmfs_range r;
	struct blk *b = NULL;
	uint64_t off = 0;

	for (unsigned i = 0; i < RANGES && off < in->length && w->left; i++, w->left--) {
		if (vmfs_file_range(w->v, in, off, &r) < 0)
			abort();
		if (r.off != off || !r.len || r.len > in->length - off ||
		    (r.kind == VMFS_RANGE_LOST) != !!r.why)
			abort();
		off += r.len;
	}
	(void)vmfs_file_read(w->v, in, buf, sizeof(buf), 0);
	(void)vmfs_file_read(w->v, in, buf, sizeof(buf), in->length / 2);
	if (vmfs_file_blk(&b, w->v, in, "file", NULL) == 0)
		fuzz_look(b);
	blk_close(b);
}

static void look_at_addresses(struct walk *w, const struct vmfs_inode *in)
{
	const struct vmfs_geometry *g = &vmfs_plan(w->v)->geo;
	uint64_t vol, len;
	struct vmfs_addr a;

	for (unsigned i = 0; i < in->nr_addr; i += 40) {
		if (vmfs_addr_parse(g, in->address[i], &a) < 0)
			continue;
		(void)vmfs_addr_locate(w->v, &a, &vol, &len);
		(void)vmfs_addr_used(w->v, &a);
	}
}

static int look_at(void *opaque, const struct vmfs_dirent *e)
{
	struct walk *w = opaque;
	struct vmfs_inode *in;
	int r = 0;

	if (!w->left)
		return 1;
	w->left--;
	if (strlen(e->name) > VMFS_NAME_MAX || strchr(e->name, '/'))
		abort();
	in = malloc(sizeof(*in));
	if (vmfs_inode_read(w->v, e->addr, in, NULL) == 0) {
		look_at_addresses(w, in);
		look_at_file(w, in);
		w->depth++;
		if (in->is_dir && w->depth < DEPTH && e->name[0] != '.')
			r = vmfs_dir_each(w->v, in, true, look_at, w, NULL, NULL);
		w->depth--;
	}
	free(in);
	return r;
}

static void ignore(void *opaque, enum vmfs_severity severity, const char *what,
		   const char *sentence)
{
	if (!what[0] || !sentence[0] || strchr(sentence, '\n'))
		abort();
}

static void look_at_volume(struct vmfs *v)
{
	struct walk w = {.v = v, .left = BUDGET};
	struct vmfs_inode *in = malloc(sizeof(*in));
	unsigned left = 20 * BUDGET;

	if (vmfs_lookup(v, "/", in, NULL) == 0) {
		(void)vmfs_dir_each(v, in, false, look_at, &w, NULL, NULL);
		look_at_file(&w, in);
	}
	(void)vmfs_lookup(v, "/d/./../d/file", in, NULL);
	(void)vmfs_check(v, ignore, &left, no_more, NULL);
	free(in);
	vmfs_close(v);
}

static void by_headers(struct blk *b)
{
	struct error err = {""};
	struct vmfs *v = NULL;

	if (vmfs_open(&v, &b, 1, NULL, VMFS_ALLOW_MISSING | VMFS_OTHER_SNAPSHOT, &err) == 0)
		look_at_volume(v);
	else if (!err.msg[0])
		abort();
}

static void by_plan(struct blk *b, unsigned version)
{
	struct vmfs_plan p = {.nr_devs = 1, .dev = {b}, .nr_runs = 1};
	struct error err = {""};
	struct vmfs *v = NULL;
	bool six = version == 6;

	p.geo = (struct vmfs_geometry){
		.version = version,
		.dense = true,
		.file_block_size = MiB,
		.sub_block_size = six ? 65536 : 8192,
		.md_align = six ? 4096 : 512,
		.lfb_shift = 9,
		.ptr_per_block = six ? 8192 : 1024,
		.fd_size = six ? 8192 : 2048,
		.fdc_base = six ? 0x720000 : 0x420000,
	};
	p.run = calloc(1, sizeof(*p.run));
	p.run[0].len = blk_size(b);
	p.run[0].dev_off = 0x1100000;
	if (vmfs_assemble(&v, &p, &err) == 0)
		look_at_volume(v);
	else if (!err.msg[0])
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const unsigned version[] = {3, 5, 6, 5};
	struct blk_info info = {.block_size = 512};
	struct blk *b = NULL;

	if (size < 5)
		return 0;
	info.size = fuzz_unpack(data, size);
	if (blk_wrap(&b, &fuzz_file, NULL, &info, BLK_FILE | BLK_NO_POOL | BLK_READONLY, NULL) < 0)
		abort();
	if (data[0] & 1)
		by_plan(b, version[data[0] >> 1 & 3]);
	else
		by_headers(b);
	blk_close(b);
	for (unsigned i = 0; i < FUZZ_PAGES; i++) {
		free(fuzz_page[i]);
		fuzz_page[i] = NULL;
	}
	return 0;
}
