/* A disk of somebody else, scanned for what can be got back: every byte looked at, the volume
 * rebuilt, every entry asked for its ranges and read, disks opened.
 *
 * Input as in fuzz_image.h; bit 0 of the first byte: as deep as can be, bit 1: the second volume.
 */
#include "fuzz_image.h"

#include "recover/recover.h"

enum { ENTRIES = 120, RANGES = 16 };

struct walk {
	struct rec *r;
	unsigned left, depth;
};

/* Pages that were never written are holes: a scan passes over them. */
static int holes(struct blk *b, uint64_t off, uint64_t *len, enum blk_extent *what)
{
	bool none = !fuzz_page[off / FUZZ_PAGE];
	uint64_t end = off / FUZZ_PAGE + 1;

	while (end < FUZZ_PAGES && !fuzz_page[end] == none && end * FUZZ_PAGE < off + *len)
		end++;
	*len = MIN(*len, end * FUZZ_PAGE - off);
	*what = none ? BLK_EXT_HOLE : BLK_EXT_DATA;
	return 0;
}

static const struct blk_format holey_file = {
	.name = "fuzz",
	.parallel = true,
	.readv = fuzz_readv,
	.extent = holes,
	.close = fuzz_close,
};

static void look_at_ranges(struct walk *w, const struct rec_entry *e)
{
	struct rec_range x;
	uint64_t off = 0, sum = 0;

	for (unsigned i = 0; i < REC_NR_TRUST; i++)
		sum += e->bytes[i];
	for (unsigned i = 0; i < RANGES && off < e->length; i++) {
		if (rec_range(w->r, e->id, off, &x) < 0)
			return;
		if (x.off > off || !x.len || x.off + x.len <= off || x.trust >= REC_NR_TRUST ||
		    (x.trust != REC_EXACT) != !!x.why)
			abort();
		off = x.off + x.len;
	}
	if (off > e->length && e->length)
		abort();
}

static void look_at_bytes(struct walk *w, const struct rec_entry *e)
{
	struct error err = {""};
	struct blk *b = NULL;

	for (unsigned flags = 0; flags <= REC_BLK_STRICT; flags++)
		if (rec_blk(w->r, e->id, flags, &b, &err) == 0) {
			fuzz_look(b);
			blk_close(b);
		} else if (!err.msg[0]) {
			abort();
		}
	if (e->what && rec_open_disk(w->r, e->id, 0, &b, &err) == 0) {
		fuzz_look(b);
		blk_close(b);
	}
}

static int look_at(void *opaque, const struct rec_entry *e)
{
	struct walk *w = opaque;
	char path[8192];
	int r = 0;

	if (!w->left)
		return 1;
	w->left--;
	if (!e->name || strchr(e->name, '/'))
		abort();
	(void)rec_path(w->r, e->id, path, sizeof(path));
	(void)rec_readlink(w->r, e->id, path, sizeof(path));
	look_at_ranges(w, e);
	if (!e->is_dir)
		look_at_bytes(w, e);
	if (++w->depth > 200)
		abort();
	if (e->is_dir)
		r = rec_children(w->r, e->id, look_at, w, NULL);
	w->depth--;
	return r;
}

static int look_at_vm(void *opaque, const struct rec_vm *vm)
{
	if (!vm->name || vm->nr_disks > REC_VM_DISKS)
		abort();
	return 0;
}

static void recover(struct blk *b, unsigned flags)
{
	struct rec_source source = {.blk = b, .name = "fuzz", .identity = "fuzz"};
	struct rec_config cfg = {.source = &source, .nr_sources = 1};
	struct rec_scan scan = {.depth = flags & 1 ? REC_FULL : REC_AS_IS,
				.deepen = true,
				.volume = flags >> 1 & 1,
				.threads = 1};
	struct walk w = {.left = ENTRIES};
	struct error err = {""};
	struct rec_entry root;

	if (rec_open(&w.r, &cfg, &err) < 0)
		abort();
	if (rec_scan(w.r, &scan, &err) == 0) {
		if (rec_entry(w.r, REC_ROOT, &root, NULL) < 0)
			abort();
		look_at(&w, &root);
		(void)rec_vms(w.r, look_at_vm, NULL, NULL);
	} else if (!err.msg[0]) {
		abort();
	}
	rec_close(w.r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct blk_info info = {.block_size = 512};
	struct blk *b = NULL;

	if (size < 5)
		return 0;
	info.size = fuzz_unpack(data, size);
	if (blk_wrap(&b, &holey_file, NULL, &info, BLK_FILE | BLK_NO_POOL | BLK_READONLY, NULL) < 0)
		abort();
	recover(b, data[0]);
	blk_close(b);
	for (unsigned i = 0; i < FUZZ_PAGES; i++) {
		free(fuzz_page[i]);
		fuzz_page[i] = NULL;
	}
	return 0;
}
