/* block/vmdk/create.c - making disks: the descriptor, and empty extents of every kind.
 *
 * Option keys and the five hosted subformats are qemu-img's; ESXi's are ours.  Layouts as VMware's
 * and QEMU's programs make them, so that both take the result:
 *
 *   sparse   header, descriptor (20 sectors), copy of GD, its GTs, GD, its GTs, grains
 *   stream   header, descriptor, to 64 KiB; then a tail that holds nothing
 *   COWD     header (4 sectors), GD
 *   seSparse header, volatile header, journal header and journal, GD, GTs, grains */
#include "base/bytes.h"
#include "base/error.h"
#include "block/vmdk/vmdk.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SPLIT_SIZE (2 * GiB)

enum { DESC_SECTOR = 1, DESC_SECTORS = 20, GRAIN_SECTORS = 128, GTES = 512 };
enum { COWD_GRAIN_SECTORS = 1, COWD_GTES = 4096, SE_GRAIN_SECTORS = 8, SE_GT_SECTORS = 64 };

enum maker { MAKE_SPARSE, MAKE_FLAT, MAKE_STREAM, MAKE_COWD, MAKE_SESPARSE };

struct subformat {
	const char *name, *word,
		*suffix; /* of the extents' files; NULL: the descriptor is inside */
	enum maker maker;
	bool split;
};

// clang-format off
static const struct subformat subformats[] = {
	{"monolithicSparse",	 "SPARSE",     NULL,	    MAKE_SPARSE,   false},
	{"monolithicFlat",	 "FLAT",       "-flat",	    MAKE_FLAT,	   false},
	{"twoGbMaxExtentSparse", "SPARSE",     "-s",	    MAKE_SPARSE,   true},
	{"twoGbMaxExtentFlat",	 "FLAT",       "-f",	    MAKE_FLAT,	   true},
	{"streamOptimized",	 "SPARSE",     NULL,	    MAKE_STREAM,   false},
	{"vmfs",		 "VMFS",       "-flat",	    MAKE_FLAT,	   false},
	{"vmfsThin",		 "VMFS",       "-flat",	    MAKE_FLAT,	   false},
	{"vmfsSparse",		 "VMFSSPARSE", "-delta",    MAKE_COWD,	   false},
	{"seSparse",		 "SESPARSE",   "-sesparse", MAKE_SESPARSE, false},
};

const struct blk_option vmdk_create_options[] = {
	{"adapter_type", "ide|lsilogic|buslogic|legacyESX", "ide", "controller the disk is made for"},
	{"backing_file", "FILE", NULL, "disk that this one stands on"},
	{"backing_fmt", "vmdk", NULL, "format of the backing file"},
	{"compat6", "on|off", "off", "hardware version 6"},
	{"hwversion", "NUMBER", "4", "hardware version"},
	{"subformat", "monolithicSparse|monolithicFlat|twoGbMaxExtentSparse|twoGbMaxExtentFlat|"
		      "streamOptimized|vmfs|vmfsThin|vmfsSparse|seSparse",
	 "monolithicSparse", "what files it is made of"},
	{"toolsversion", "NUMBER", "2147483647", "version of VMware's tools in the guest"},
	{"zeroed_grain", "on|off", "off", "mark grains of zeroes in the tables"},
	{NULL, NULL, NULL, NULL},
};
// clang-format on

struct making {
	const struct blk_create *c;
	const struct subformat *sub;
	const char *adapter, *hwversion, *tools, *backing;
	bool zeroed_grain;
	uint32_t cid, parent_cid;
	char *stem;    /* path without ".vmdk" */
	char *extents; /* the extent lines so far */
};

/* ---- options ---- */

static const struct subformat *find_subformat(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(subformats); i++)
		if (!strcasecmp(name, subformats[i].name))
			return &subformats[i];
	return NULL;
}

static const char *option(const struct blk_kv *kv, unsigned n, const char *key, const char *preset)
{
	const char *value = blk_kv_get(kv, n, key);

	return value ? value : preset;
}

static int check_number(const char *key, const char *value, struct error *err)
{
	if (!*value || strlen(value) > 10 || value[strspn(value, "0123456789")])
		return err_set(err, EINVAL, "%s must be a number, not '%s'", key, value);
	return 0;
}

static int check_adapter(const char *adapter, struct error *err)
{
	static const char *const known[] = {"ide", "lsilogic", "buslogic", "legacyESX"};

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (!strcasecmp(adapter, known[i]))
			return 0;
	return err_set(err, EINVAL,
		       "adapter_type '%s' is not known (ide, lsilogic, buslogic or legacyESX)",
		       adapter);
}

static int subformat_option(const struct blk_kv *kv, unsigned n, const struct subformat **sub,
			    struct error *err)
{
	const char *name = option(kv, n, "subformat", "monolithicSparse");

	*sub = find_subformat(name);
	return *sub ? 0 : err_set(err, EINVAL, "VMDK subformat '%s' is not known", name);
}

static int parse_options(struct making *m, struct error *err)
{
	const struct blk_kv *kv = m->c->opt;
	unsigned n = m->c->nr_opts;
	bool compat6 = false;
	int r = subformat_option(kv, n, &m->sub, err);

	m->adapter = option(kv, n, "adapter_type", "ide");
	m->tools = option(kv, n, "toolsversion", "2147483647");
	m->backing = m->c->backing ? m->c->backing : blk_kv_get(kv, n, "backing_file");
	if (!r)
		r = blk_kv_bool(kv, n, "compat6", false, &compat6, err);
	if (!r)
		r = blk_kv_bool(kv, n, "zeroed_grain", false, &m->zeroed_grain, err);
	if (!r && compat6 && blk_kv_get(kv, n, "hwversion"))
		r = err_set(err, EINVAL, "compat6 and hwversion exclude each other");
	m->hwversion = option(kv, n, "hwversion", compat6 ? "6" : "4");
	if (!r)
		r = check_adapter(m->adapter, err);
	if (!r)
		r = check_number("hwversion", m->hwversion, err);
	return r ? r : check_number("toolsversion", m->tools, err);
}

static int check_rules(struct making *m, struct error *err)
{
	const char *format = m->c->backing_format
				     ? m->c->backing_format
				     : option(m->c->opt, m->c->nr_opts, "backing_fmt", "vmdk");

	if (m->backing && m->sub->maker == MAKE_FLAT)
		return err_set(err, ENOTSUP, "flat extents cannot stand on a backing file");
	if (m->backing && strcasecmp(format, "vmdk") != 0)
		return err_set(err, EINVAL, "a VMDK stands on a VMDK only, not on %s", format);
	if (m->backing && strpbrk(m->backing, "\"\r\n"))
		return err_set(err, EINVAL, "a descriptor cannot hold the name '%s'", m->backing);
	if (m->zeroed_grain && m->sub->maker != MAKE_SPARSE)
		return err_set(err, EINVAL, "zeroed_grain is for the hosted sparse subformats");
	if (m->c->size / SECTOR > VMDK_SECTORS_MAX)
		return err_set(err, EFBIG, "a VMDK cannot be that large");
	if (m->sub->maker == MAKE_COWD && m->c->size / SECTOR > UINT32_MAX)
		return err_set(err, EFBIG, "a vmfsSparse disk has at most 2 TiB");
	return 0;
}

/* ---- the parent ---- */

/* A name the user gives, not an image: relative to the new image, anywhere. */
static char *backing_path(const struct making *m)
{
	size_t dir = (size_t)(vmdk_base_name(m->c->path) - m->c->path);
	char *path = NULL;

	if (m->backing[0] == '/')
		return strdup(m->backing);
	return asprintf(&path, "%.*s%s", (int)dir, m->c->path, m->backing) < 0 ? NULL : path;
}

static int ask_parent(struct making *m, uint64_t *size, struct error *err)
{
	struct blk *b = NULL;
	char *path;
	int r;

	m->parent_cid = CID_NONE;
	if (!m->backing)
		return 0;
	path = backing_path(m);
	if (!path)
		return err_errno(err, ENOMEM, "'%s'", m->backing);
	r = blk_open_with(&b, path, "vmdk", BLK_READONLY | BLK_NO_POOL | BLK_NO_BACKING, m->c->open,
			  err);
	free(path);
	if (r < 0)
		return err_wrap(err, r, "backing file");
	m->parent_cid = vmdk_of(b)->desc.text ? vmdk_of(b)->desc.cid : CID_NONE - 1;
	if (!*size)
		*size = blk_size(b);
	blk_close(b);
	return 0;
}

/* ---- the descriptor ---- */

static int add_extent_line(struct making *m, uint64_t bytes, const char *file)
{
	bool flat = m->sub->maker == MAKE_FLAT, vmfs = !strcmp(m->sub->word, "VMFS");
	char *all = NULL;

	if (asprintf(&all, "%sRW %" PRIu64 " %s \"%s\"%s\n", m->extents ? m->extents : "",
		     bytes / SECTOR, m->sub->word, vmdk_base_name(file),
		     flat && !vmfs ? " 0" : "") < 0)
		return -ENOMEM;
	free(m->extents);
	m->extents = all;
	return 0;
}

static char *descriptor_text(const struct making *m, uint64_t size)
{
	struct vmdk_geometry g = vmdk_geometry(size, m->adapter);
	bool thin = !strcmp(m->sub->name, "vmfsThin"); /* ESXi's own name for its type is vmfs */
	char hint[4200] = "", *text = NULL;

	if (m->backing)
		snprintf(hint, sizeof(hint), "parentFileNameHint=\"%s\"\n", m->backing);
	if (asprintf(&text,
		     "# Disk DescriptorFile\n"
		     "version=1\n"
		     "CID=%08x\n"
		     "parentCID=%08x\n"
		     "createType=\"%s\"\n"
		     "%s"
		     "\n"
		     "# Extent description\n"
		     "%s"
		     "\n"
		     "# The Disk Data Base\n"
		     "#DDB\n"
		     "\n"
		     "ddb.virtualHWVersion = \"%s\"\n"
		     "ddb.geometry.cylinders = \"%" PRIu64 "\"\n"
		     "ddb.geometry.heads = \"%u\"\n"
		     "ddb.geometry.sectors = \"%u\"\n"
		     "ddb.adapterType = \"%s\"\n"
		     "ddb.toolsVersion = \"%s\"\n"
		     "%s",
		     m->cid, m->parent_cid, thin ? "vmfs" : m->sub->name, hint, m->extents,
		     m->hwversion, g.cylinders, g.heads, g.sectors, m->adapter, m->tools,
		     thin ? "ddb.thinProvisioned = \"1\"\n" : "") < 0)
		return NULL;
	return text;
}

/* ---- extents ---- */

static int put_header(struct blk *file, struct vmdk_extent *e, uint64_t gd_sector)
{
	uint8_t h[SECTOR];

	vmdk_hosted_header(e, true, gd_sector, h);
	return blk_write(file, h, SECTOR, 0);
}

/* A directory whose tables follow it, all of them. */
static int put_directory(struct blk *file, const struct vmdk_extent *e, uint64_t off)
{
	uint64_t len = ALIGN_UP(e->nr_gd * 4ull, SECTOR);
	uint8_t *raw = calloc(1, len + 1);
	int r = -ENOMEM;

	if (raw) {
		for (uint32_t i = 0; i < e->nr_gd; i++)
			le32_store(raw + i * 4ull,
				   (uint32_t)((off + len + i * e->gt_bytes) / SECTOR));
		r = blk_write(file, raw, len, off);
	}
	free(raw);
	return r;
}

static int hosted_extent(struct vmdk_extent *e, uint64_t size, struct error *err)
{
	e->capacity = size;
	e->grain = GRAIN_SECTORS * SECTOR;
	e->nr_gtes = GTES;
	e->gt_bytes = GTES * 4;
	e->nr_gd = vmdk_nr_tables(size, e->grain, GTES);
	if (!e->nr_gd && size)
		return err_set(err, EFBIG, "a sparse VMDK has at most %llu bytes",
			       (unsigned long long)(VMDK_GD_MAX * e->grain * GTES));
	return 0;
}

static uint64_t directory_len(const struct vmdk_extent *e)
{
	return ALIGN_UP(e->nr_gd * 4ull, SECTOR) + e->nr_gd * e->gt_bytes;
}

static uint64_t sparse_overhead(const struct vmdk_extent *e)
{
	return ALIGN_UP((DESC_SECTOR + DESC_SECTORS) * SECTOR + 2 * directory_len(e), e->grain);
}

static int make_sparse(const struct making *m, struct blk *file, uint64_t size, struct error *err)
{
	struct vmdk_extent e = {
		.version = m->zeroed_grain ? 2 : 1,
		.flags = m->zeroed_grain ? 7 : 3,
		.rgd_off = (DESC_SECTOR + DESC_SECTORS) * SECTOR,
	};
	int r = hosted_extent(&e, size, err);

	if (r < 0)
		return r;
	if (!m->sub->suffix) {
		e.desc_off = DESC_SECTOR * SECTOR;
		e.desc_room = DESC_SECTORS * SECTOR;
	}
	e.gd_off = e.rgd_off + directory_len(&e);
	e.overhead = sparse_overhead(&e);
	if (e.overhead / SECTOR > UINT32_MAX)
		return err_set(err, EFBIG, "the tables of a sparse VMDK of that size do not fit");
	r = blk_resize(file, e.overhead);
	if (!r)
		r = put_directory(file, &e, e.rgd_off);
	if (!r)
		r = put_directory(file, &e, e.gd_off);
	return r ? r : put_header(file, &e, e.gd_off / SECTOR);
}

/* The tail of a disk without data: markers, an empty directory, footer, end (stream.c). */
static int make_stream(const struct making *m, struct blk *file, uint64_t size, struct error *err)
{
	struct vmdk_extent e = {
		.version = 3,
		.flags = 0x30001,
		.desc_off = DESC_SECTOR * SECTOR,
		.desc_room = DESC_SECTORS * SECTOR,
		.overhead = GRAIN_SECTORS * SECTOR,
	};
	uint8_t marker[SECTOR] = {0}, footer[SECTOR];
	uint64_t gd_len, at = e.overhead;
	int r = hosted_extent(&e, size, err);

	if (r < 0)
		return r;
	gd_len = ALIGN_UP(MAX(e.nr_gd * 4ull, 1ull), SECTOR);
	vmdk_hosted_header(&e, true, at / SECTOR + 1, footer);
	le64_store(marker, gd_len / SECTOR);
	le32_store(marker + 12, 2);
	r = blk_resize(file, at + SECTOR + gd_len + 3 * SECTOR);
	if (!r)
		r = blk_write(file, marker, SECTOR, at);
	at += SECTOR + gd_len;
	le64_store(marker, 1);
	le32_store(marker + 12, 3);
	if (!r)
		r = blk_write(file, marker, SECTOR, at);
	if (!r)
		r = blk_write(file, footer, SECTOR, at + SECTOR);
	return r ? r : put_header(file, &e, VMDK_GD_AT_END);
}

static int make_cowd(struct blk *file, uint64_t size)
{
	uint64_t nr = vmdk_nr_tables(size, COWD_GRAIN_SECTORS * SECTOR, COWD_GTES);
	uint64_t end = 4 * SECTOR + ALIGN_UP(MAX(nr, 1ull) * 4, SECTOR);
	uint8_t h[4 * SECTOR] = {0};
	int r = blk_resize(file, end);

	memcpy(h, "COWD", 4);
	le32_store(h + 4, 1);
	le32_store(h + 8, 3);
	le32_store(h + 12, (uint32_t)(size / SECTOR));
	le32_store(h + 16, COWD_GRAIN_SECTORS);
	le32_store(h + 20, 4);
	le32_store(h + 24, (uint32_t)nr);
	le32_store(h + 28, (uint32_t)(end / SECTOR));
	return r ? r : blk_write(file, h, sizeof(h), 0);
}

/* No map of free grains and no map back: see se_may_write in sparse.c. */
static int make_sesparse(struct blk *file, uint64_t size, struct error *err)
{
	enum { VOLATILE = 1, JOURNAL_HEADER = 2, JOURNAL = 2048, JOURNAL_LEN = 2048, GD = 4096 };
	uint32_t nr = vmdk_nr_tables(size, SE_GRAIN_SECTORS * SECTOR, SE_GT_SECTORS * SECTOR / 8);
	uint64_t gd_sectors = ALIGN_UP(nr * 8ull + 1, 64 * KiB) / SECTOR;
	uint64_t tables = GD + gd_sectors, tables_len = (uint64_t)nr * SE_GT_SECTORS;
	uint64_t grains = ALIGN_UP(tables + tables_len, 2048);
	uint8_t h[SECTOR] = {0}, vh[SECTOR] = {0};
	const uint64_t fields[][2] = {
		{0x00, 0xcafebabe},
		{0x08, 0x200000001},
		{0x10, size / SECTOR},
		{0x18, SE_GRAIN_SECTORS},
		{0x20, SE_GT_SECTORS},
		{0x50, VOLATILE},
		{0x58, 1},
		{0x60, JOURNAL_HEADER},
		{0x68, 2},
		{0x70, JOURNAL},
		{0x78, JOURNAL_LEN},
		{0x80, GD},
		{0x88, gd_sectors},
		{0x90, tables},
		{0x98, tables_len},
		{0xa0, grains},
		{0xb0, grains},
		{0xc0, grains},
		{0xc8, size / SECTOR},
	};
	int r;

	if (!nr && size)
		return err_set(err, EFBIG, "a seSparse VMDK cannot be that large");
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		le64_store(h + fields[i][0], fields[i][1]);
	le64_store(vh, 0xcafecafe);
	r = blk_resize(file, grains * SECTOR);
	if (!r)
		r = blk_write(file, vh, SECTOR, VOLATILE * SECTOR);
	return r ? r : blk_write(file, h, SECTOR, 0);
}

static int fill_kind(const struct making *m, struct blk *file, uint64_t size, struct error *err)
{
	switch (m->sub->maker) {
	case MAKE_SPARSE:
		return make_sparse(m, file, size, err);
	case MAKE_STREAM:
		return make_stream(m, file, size, err);
	case MAKE_COWD:
		return make_cowd(file, size);
	case MAKE_SESPARSE:
		return make_sesparse(file, size, err);
	default:
		return blk_resize(file, size);
	}
}

static int fill_extent(struct making *m, struct blk *file, uint64_t size, const char *path,
		       struct error *err)
{
	struct error why = {""};
	int r = fill_kind(m, file, size, &why);

	if (!r)
		r = add_extent_line(m, size, path);
	if (r < 0 && why.msg[0])
		return err_set(err, -r, "%s", why.msg);
	return r < 0 ? err_errno(err, -r, "cannot make '%s'", path) : 0;
}

static int make_extent(struct making *m, const char *path, uint64_t size, struct error *err)
{
	struct blk *file = NULL;
	int r = blk_create_file(m->c, path, &file, err);

	if (r < 0)
		return r;
	r = fill_extent(m, file, size, path, err);
	blk_close(file);
	return r;
}

static char *extent_path(const struct making *m, unsigned number)
{
	char *path = NULL;
	int n;

	if (m->sub->split)
		n = asprintf(&path, "%s%s%03u.vmdk", m->stem, m->sub->suffix, number);
	else
		n = asprintf(&path, "%s%s.vmdk", m->stem, m->sub->suffix);
	return n < 0 ? NULL : path;
}

static int make_extents(struct making *m, uint64_t size, struct error *err)
{
	uint64_t step = m->sub->split ? SPLIT_SIZE : MAX(size, 1ull), left = size;
	int r = 0;

	if (size / step >= VMDK_EXTENTS_MAX)
		return err_set(err, EFBIG, "a split VMDK has at most %u pieces of 2 GiB",
			       VMDK_EXTENTS_MAX);
	for (unsigned i = 1; !r && (left || i == 1); i++) {
		char *path = extent_path(m, i);
		uint64_t n = MIN(left, step);

		r = path ? make_extent(m, path, n, err) : err_errno(err, ENOMEM, "'%s'", m->stem);
		left -= n;
		free(path);
	}
	return r;
}

/* ---- all together ---- */

static int write_text(const struct making *m, struct blk *file, uint64_t size, struct error *err)
{
	char *text = descriptor_text(m, size);
	uint64_t at = m->sub->suffix ? 0 : DESC_SECTOR * SECTOR;
	int r;

	if (!text)
		return err_errno(err, ENOMEM, "'%s'", m->c->path);
	if (at && strlen(text) >= DESC_SECTORS * SECTOR)
		r = err_set(err, ENAMETOOLONG, "the backing file's name is too long");
	else if ((r = blk_write(file, text, strlen(text), at)) < 0)
		err_errno(err, -r, "cannot write '%s'", m->c->path);
	free(text);
	return r;
}

static int make_disk(struct making *m, uint64_t size, struct error *err)
{
	struct blk *file = NULL;
	int r = blk_create_file(m->c, m->c->path, &file, err);

	if (r < 0)
		return r;
	r = m->sub->suffix ? make_extents(m, size, err)
			   : fill_extent(m, file, size, m->c->path, err);
	if (!r)
		r = write_text(m, file, size, err);
	blk_close(file);
	return r;
}

static char *stem_of(const char *path)
{
	size_t len = strlen(path);

	if (len > 5 && !strcasecmp(path + len - 5, ".vmdk"))
		len -= 5;
	return strndup(path, len);
}

int vmdk_create(const struct blk_create *c, struct error *err)
{
	struct making m = {.c = c, .cid = vmdk_random_cid()};
	uint64_t size = ALIGN_UP(c->size, SECTOR);
	int r = parse_options(&m, err);

	if (!r)
		r = check_rules(&m, err);
	if (!r)
		r = ask_parent(&m, &size, err);
	if (r < 0)
		return r;
	m.stem = stem_of(c->path);
	r = m.stem ? make_disk(&m, size, err) : err_errno(err, ENOMEM, "'%s'", c->path);
	free(m.stem);
	free(m.extents);
	return r;
}

/* ---- measuring ---- */

static uint64_t packed_bytes(uint64_t data)
{
	uint64_t grains = data / (GRAIN_SECTORS * SECTOR) + 1;

	return grains * (GRAIN_SECTORS + 1) * SECTOR; /* nothing gets smaller: a sector more each */
}

int vmdk_measure(const struct blk_kv *opt, unsigned n, struct blk_measure *m, struct error *err)
{
	const struct subformat *sub;
	struct vmdk_extent e = {0};
	uint64_t pieces;
	int r = subformat_option(opt, n, &sub, err);

	if (r < 0)
		return r;
	m->required = m->fully_allocated = m->size;
	if (sub->maker == MAKE_FLAT)
		return 0;
	pieces = sub->split ? MAX((m->size + SPLIT_SIZE - 1) / SPLIT_SIZE, 1ull) : 1;
	r = hosted_extent(&e, MIN(m->size, sub->split ? SPLIT_SIZE : m->size), err);
	if (r < 0)
		return r;
	if (sub->maker == MAKE_STREAM) {
		uint64_t tail = 64 * KiB + 4 * SECTOR + directory_len(&e) + e.nr_gd * 512ull;

		m->required = tail + packed_bytes(m->data);
		m->fully_allocated = tail + packed_bytes(m->size);
		return 0;
	}
	m->required = pieces * sparse_overhead(&e) + ALIGN_UP(m->data, e.grain);
	m->fully_allocated = pieces * sparse_overhead(&e) + ALIGN_UP(m->size, e.grain);
	return 0;
}
