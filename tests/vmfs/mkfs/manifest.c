/* The manifest: what is where, and what of the deleted is still whole; JSON for Python's tests. */
#include "internal.h"

#include <jansson.h>
#include <openssl/evp.h>

enum { CHUNK = 1 << 20, UNIT = 512 };
#define SHA_MAX (2 * GIB) /* a longer file has hashes of its pieces only */

static void hex(char out[65], const uint8_t *raw)
{
	for (int i = 0; i < 32; i++)
		snprintf(out + 2ull * i, 3, "%02x", raw[i]);
}

/* What the file has at off: as it reads, or as it lies there (blocks to be zeroed differ). */
static void expected(const struct node *n, uint64_t off, uint8_t *buf, uint64_t len, bool lies)
{
	memset(buf, 0, len);
	for (unsigned int i = 0; i < n->pieces; i++) {
		const struct piece *p = &n->piece[i];
		uint64_t a = p->off > off ? p->off : off;
		uint64_t b = p->off + p->len < off + len ? p->off + p->len : off + len;

		if (a < b && (lies || !p->tbz))
			piece_bytes(p, a - p->off, buf + (a - off), b - a);
	}
}

static void hash_range(const struct node *n, uint64_t off, uint64_t len, char out[65])
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	uint8_t *buf = xalloc(CHUNK), raw[EVP_MAX_MD_SIZE];

	EVP_DigestInit_ex(ctx, EVP_sha256(), NULL);
	for (uint64_t end = off + len, part; off < end; off += part) {
		part = end - off < CHUNK ? end - off : CHUNK;
		expected(n, off, buf, part, false);
		EVP_DigestUpdate(ctx, buf, part);
	}
	EVP_DigestFinal_ex(ctx, raw, NULL);
	EVP_MD_CTX_free(ctx);
	free(buf);
	hex(out, raw);
}

static json_t *number(uint64_t v)
{
	return json_integer((json_int_t)v);
}

static void set_num(json_t *o, const char *key, uint64_t v)
{
	json_object_set_new(o, key, number(v));
}

static void set_str(json_t *o, const char *key, const char *v)
{
	json_object_set_new(o, key, json_string(v));
}

static void set_bool(json_t *o, const char *key, bool v)
{
	json_object_set_new(o, key, json_boolean(v));
}

/* [file offset, length, volume offset, extent, offset in the extent's partition] */
static void add_run(const struct mkfs *m, json_t *list, uint64_t off, uint64_t len, uint64_t vol)
{
	while (len) {
		uint64_t n;
		const struct extent *e = dev_at(m, vol, &n);
		json_t *r = json_array();

		if (n > len)
			n = len;
		json_array_append_new(r, number(off));
		json_array_append_new(r, number(n));
		json_array_append_new(r, number(vol));
		json_array_append_new(r, number((uint64_t)(e - m->ext)));
		json_array_append_new(r, number(LVM_DATA + vol - e->vol_off));
		json_array_append_new(list, r);
		off += n;
		vol += n;
		len -= n;
	}
}

struct run {
	uint64_t off, len, vol;
};

/* The next piece of the file that lies together; holes are skipped. */
static bool next_run(const struct mkfs *m, const struct node *n, uint64_t off, struct run *r)
{
	uint64_t vol, len;

	*r = (struct run){0};
	while (off < n->length) {
		len = node_step(m, n, off, &vol);
		if (r->len && (vol != r->vol + r->len || !vol))
			return true;
		if (vol && !r->len)
			*r = (struct run){off, 0, vol};
		r->len += vol ? len : 0;
		off += len;
	}
	return r->len > 0;
}

static json_t *runs_of(const struct mkfs *m, const struct node *n)
{
	json_t *list = json_array();
	struct run r;

	for (uint64_t off = 0; next_run(m, n, off, &r); off = r.off + r.len)
		add_run(m, list, r.off, r.len, r.vol);
	return list;
}

static void add_pair(json_t *list, uint64_t off, uint64_t len)
{
	uint64_t last = json_array_size(list);
	json_t *p = last ? json_array_get(list, last - 1) : NULL;

	if (p && (uint64_t)json_integer_value(json_array_get(p, 0)) +
				 (uint64_t)json_integer_value(json_array_get(p, 1)) ==
			 off) {
		len += (uint64_t)json_integer_value(json_array_get(p, 1));
		json_array_set_new(p, 1, number(len));
		return;
	}
	p = json_array();
	json_array_append_new(p, number(off));
	json_array_append_new(p, number(len));
	json_array_append_new(list, p);
}

/* Where the image no longer has what the file had, to the sector. */
static void compare_run(struct mkfs *m, const struct node *n, const struct run *r, json_t *bad)
{
	uint8_t *want = xalloc(CHUNK), *have = xalloc(CHUNK);

	for (uint64_t at = 0, part; at < r->len; at += part) {
		part = r->len - at < CHUNK ? r->len - at : CHUNK;
		expected(n, r->off + at, want, part, true);
		dev_read(m, r->vol + at, have, part);
		for (uint64_t u = 0; u < part; u += UNIT) {
			uint64_t len = part - u < UNIT ? part - u : UNIT;

			if (memcmp(want + u, have + u, len))
				add_pair(bad, r->off + at + u, len);
		}
	}
	free(want);
	free(have);
}

static json_t *damage_of(struct mkfs *m, const struct node *n)
{
	json_t *bad = json_array();
	struct run r;

	if (n->type != TYPE_FILE && n->type != TYPE_LINK)
		return bad;
	for (uint64_t off = 0; next_run(m, n, off, &r); off = r.off + r.len)
		compare_run(m, n, &r, bad);
	return bad;
}

static const char *type_name(const struct node *n)
{
	switch (n->type) {
	case TYPE_DIR:
		return "dir";
	case TYPE_FILE:
		return "file";
	case TYPE_LINK:
		return "symlink";
	case TYPE_RDM:
		return "rdm";
	default:
		return "system";
	}
}

static void path_of(const struct mkfs *m, const struct node *n, char *out, uint64_t size)
{
	uint64_t len;

	if (n == m->root) {
		snprintf(out, size, "/");
		return;
	}
	path_of(m, n->parent, out, size);
	len = strlen(out);
	snprintf(out + len, size - len, "%s%s", n->parent == m->root ? "" : "/", n->name);
}

static json_t *place(const struct mkfs *m, uint64_t vol)
{
	json_t *o = json_object();
	uint64_t left;
	const struct extent *e = dev_at(m, vol, &left);

	set_num(o, "vol", vol);
	set_num(o, "extent", (uint64_t)(e - m->ext));
	set_num(o, "dev", LVM_DATA + vol - e->vol_off);
	return o;
}

static json_t *pieces_of(const struct node *n)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < n->pieces; i++) {
		const struct piece *p = &n->piece[i];
		json_t *o = json_object();
		char sha[65];

		set_num(o, "off", p->off);
		set_num(o, "len", p->len);
		if (p->host)
			set_str(o, "host", p->host);
		else if (!p->text)
			set_num(o, "seed", p->seed);
		set_bool(o, "tbz", p->tbz);
		hash_range(n, p->off, p->len, sha);
		set_str(o, "sha256", sha);
		json_array_append_new(list, o);
	}
	return list;
}

static void set_content(struct mkfs *m, struct node *n, json_t *o)
{
	json_t *pbs;
	char sha[65];

	if (n->type == TYPE_RDM)
		return;
	pbs = json_array();
	json_object_set_new(o, "extents", runs_of(m, n));
	for (uint32_t i = 0; i < n->pbs && n->pb; i++)
		json_array_append_new(pbs, place(m, addr_vol(m, n->pb[i])));
	json_object_set_new(o, "pointer_blocks", pbs);
	if (n->type != TYPE_FILE && n->type != TYPE_LINK)
		return;
	json_object_set_new(o, "pieces", pieces_of(n));
	if (n->length > SHA_MAX)
		return;
	hash_range(n, 0, n->length, sha);
	set_str(o, "sha256", sha);
}

static json_t *node_json(struct mkfs *m, struct node *n, bool verify)
{
	json_t *o = json_object();
	char path[8192];

	path_of(m, n, path, sizeof(path));
	set_str(o, "path", path);
	set_str(o, "type", type_name(n));
	set_num(o, "fd", n->fd);
	json_object_set_new(o, "fd_at", place(m, node_fd_vol(m, n)));
	set_num(o, "generation", n->gen);
	set_num(o, "size", n->length);
	set_num(o, "mode", n->mode);
	set_num(o, "zla", n->zla);
	set_num(o, "block_size", n->block);
	set_num(o, "blocks", n->nblocks);
	set_num(o, "large_blocks", n->lfbs);
	set_num(o, "time", n->time);
	set_bool(o, "deleted", n->deleted);
	if (n->target)
		set_str(o, "target", n->target);
	set_content(m, n, o);
	if (n->deleted) {
		set_num(o, "grade", (uint64_t)n->grade);
		set_bool(o, "unmapped", n->unmapped);
	}
	if (n->deleted || verify)
		json_object_set_new(o, "damage", damage_of(m, n));
	return o;
}

static void add_nodes(struct mkfs *m, struct node *n, json_t *list, bool verify, uint64_t *quiet)
{
	if (n->quiet)
		++*quiet;
	else
		json_array_append_new(list, node_json(m, n, verify));
	for (uint64_t i = 0; i < n->children; i++)
		add_nodes(m, n->child[i], list, verify, quiet);
}

static json_t *extents_json(const struct mkfs *m)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < m->extents; i++) {
		const struct extent *e = &m->ext[i];
		json_t *o = json_object();
		char uuid[36];

		set_str(o, "file", e->path);
		set_num(o, "partition_offset", e->part_off);
		set_num(o, "partition_size", e->part_size);
		set_num(o, "volume_offset", e->vol_off);
		set_num(o, "length", e->len);
		print_uuid(uuid, e->uuid);
		set_str(o, "uuid", uuid);
		json_array_append_new(list, o);
	}
	return list;
}

static json_t *resource_json(const struct mkfs *m, const struct res *r)
{
	json_t *o = json_object(), *headers = json_array();
	uint64_t clusters = r->rpc ? (r->num + r->rpc - 1) / r->rpc : 0;

	set_str(o, "name", r->name);
	set_num(o, "fd", r->fd);
	json_object_set_new(o, "header", place(m, res_file_vol(m, r, 0)));
	set_num(o, "resources", r->num);
	set_num(o, "free", r->free);
	set_num(o, "per_cluster", r->rpc);
	set_num(o, "cluster_header_size", r->hdr);
	for (uint64_t c = 0; c < clusters && c < 4096; c++)
		json_array_append_new(headers, place(m, res_header_vol(m, r, c)));
	json_object_set_new(o, "cluster_headers", headers);
	return o;
}

static json_t *resources_json(const struct mkfs *m)
{
	json_t *list = json_array();

	for (int k = 0; k < RES_COUNT; k++)
		if (m->res[k].name)
			json_array_append_new(list, resource_json(m, &m->res[k]));
	return list;
}

static void set_volume(const struct mkfs *m, json_t *o)
{
	char uuid[36];

	set_num(o, "version", (uint64_t)m->version);
	set_str(o, "label", m->label);
	print_uuid(uuid, m->fs_uuid);
	set_str(o, "uuid", uuid);
	print_uuid(uuid, m->lv_uuid);
	set_str(o, "lv_uuid", uuid);
	set_num(o, "block_size", m->block);
	set_num(o, "sub_block_size", m->sub);
	set_num(o, "md_alignment", m->six ? m->mdalign : 0);
	set_num(o, "fd_size", node_fd_size(m));
	set_num(o, "volume_size", m->volume);
	set_bool(o, "dense", m->f.dense);
	set_bool(o, "local", m->f.local);
	set_bool(o, "live", m->f.live);
	json_object_set_new(o, "extents", extents_json(m));
	json_object_set_new(o, "resources", resources_json(m));
	if (!m->six)
		json_object_set_new(o, "journal", place(m, m->journal * m->block));
}

static json_t *manifest(struct mkfs *m, bool verify)
{
	json_t *o = json_object(), *files = json_array();
	uint64_t quiet = 0;

	set_volume(m, o);
	add_nodes(m, m->root, files, verify, &quiet);
	json_object_set_new(o, "files", files);
	set_num(o, "not_listed", quiet);
	if (m->older)
		json_object_set_new(o, "older", manifest(m->older, true));
	return o;
}

void manifest_write(struct mkfs *m, FILE *out)
{
	json_t *o = manifest(m, false);

	if (json_dumpf(o, out, JSON_INDENT(1) | JSON_PRESERVE_ORDER) || fputc('\n', out) == EOF)
		mkfs_die("cannot write the manifest");
	json_decref(o);
}
