/* block/vmdk/desc.c - the descriptor: text of key=value lines and extent lines (VDF "The Disk
 * Descriptor File").
 *
 * VMware's own programs read it loosely, and people edit it by hand: any line ends, blanks around
 * words, missing quotes, any case.  What is not understood stays as it is when the text is written
 * back: only the value that changes is replaced. */
#include "base/error.h"
#include "block/vmdk/vmdk.h"

#include <ctype.h>
#include <errno.h>
#include <iconv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

/* A piece of the text. */
struct span {
	const char *p;
	size_t len;
};

static bool is_blank(char c)
{
	return c == ' ' || c == '\t';
}

static struct span trimmed(struct span s)
{
	while (s.len && is_blank(*s.p)) {
		s.p++;
		s.len--;
	}
	while (s.len && is_blank(s.p[s.len - 1]))
		s.len--;
	return s;
}

static bool span_is(struct span s, const char *word)
{
	return s.len == strlen(word) && !strncasecmp(s.p, word, s.len);
}

/* The next line without its end; CR, LF and CR LF end lines.  False at the end of the text. */
static bool next_line(const char **text, struct span *line)
{
	const char *p = *text;

	if (!*p)
		return false;
	*line = (struct span){p, strcspn(p, "\r\n")};
	p += line->len;
	if (p[0] == '\r' && p[1] == '\n')
		p++;
	*text = *p ? p + 1 : p;
	return true;
}

static struct span next_word(struct span *s)
{
	struct span w;

	*s = trimmed(*s);
	w = (struct span){s->p, 0};
	while (w.len < s->len && !is_blank(w.p[w.len]))
		w.len++;
	s->p += w.len;
	s->len -= w.len;
	return w;
}

/* A name in quotes, or a word without. */
static struct span next_name(struct span *s)
{
	struct span w;
	const char *end;

	*s = trimmed(*s);
	if (!s->len || *s->p != '"')
		return next_word(s);
	w = (struct span){s->p + 1, 0};
	end = memchr(w.p, '"', s->len - 1);
	w.len = end ? (size_t)(end - w.p) : s->len - 1;
	s->len -= w.len + 1 + (end != NULL);
	s->p = w.p + w.len + (end != NULL);
	return w;
}

/* Digits and nothing else; no more than 18 of them, so that nothing overflows. */
static bool parse_number(struct span s, uint64_t *n)
{
	*n = 0;
	if (!s.len || s.len > 18)
		return false;
	for (size_t i = 0; i < s.len; i++) {
		if (!isdigit((unsigned char)s.p[i]))
			return false;
		*n = *n * 10 + (uint64_t)(s.p[i] - '0');
	}
	return true;
}

static bool split_key(struct span line, struct span *key, struct span *value)
{
	const char *eq = memchr(line.p, '=', line.len);

	if (!eq)
		return false;
	*key = trimmed((struct span){line.p, (size_t)(eq - line.p)});
	*value = trimmed((struct span){eq + 1, line.len - (size_t)(eq + 1 - line.p)});
	if (value->len && *value->p == '"') {
		value->p++;
		value->len--;
		if (value->len && value->p[value->len - 1] == '"')
			value->len--;
	}
	return key->len > 0;
}

static bool is_extent_line(struct span line, enum vmdk_access *access)
{
	struct span w = next_word(&line);

	*access = span_is(w, "RW")       ? ACCESS_RW
		  : span_is(w, "RDONLY") ? ACCESS_RDONLY
					 : ACCESS_NOACCESS;
	return *access != ACCESS_NOACCESS || span_is(w, "NOACCESS");
}

/* The line of a key: its value in *value, the whole line with its end in *line. */
static bool find_key(const char *text, const char *name, struct span *value, struct span *line)
{
	enum vmdk_access access;
	const char *at = text;
	struct span l, key;

	while (next_line(&text, &l)) {
		struct span t = trimmed(l);

		*line = (struct span){at, (size_t)(text - at)};
		at = text;
		if (t.len && *t.p != '#' && !is_extent_line(t, &access) &&
		    split_key(t, &key, value) && span_is(key, name))
			return true;
	}
	return false;
}

bool vmdk_desc_value(const struct vmdk_desc *d, const char *key, char *buf, size_t cap)
{
	struct span value, line;

	if (!d->text || !find_key(d->text, key, &value, &line))
		return false;
	snprintf(buf, cap, "%.*s", (int)MIN(value.len, cap - 1), value.p);
	return true;
}

/* ---- names ---- */

static char *span_dup(struct span s)
{
	return strndup(s.p, s.len);
}

static bool is_ascii(struct span s)
{
	for (size_t i = 0; i < s.len; i++)
		if ((unsigned char)s.p[i] >= 0x80)
			return false;
	return true;
}

/* File names are in the encoding that the descriptor names (windows-1252, Shift_JIS, ...); ours are
 * UTF-8.  What cannot be converted stays as it is: it may still be the file's name. */
static char *name_to_utf8(struct span s, const char *encoding)
{
	size_t in_left = s.len, out_left = s.len * 4;
	char *out, *to, *from = (char *)(uintptr_t)s.p;
	iconv_t cd;

	if (is_ascii(s) || !*encoding || !strcasecmp(encoding, "UTF-8"))
		return span_dup(s);
	cd = iconv_open("UTF-8", encoding);
	if (cd == (iconv_t)-1)
		return span_dup(s);
	out = to = calloc(1, out_left + 1);
	if (out && iconv(cd, &from, &in_left, &to, &out_left) == (size_t)-1) {
		free(out);
		out = span_dup(s);
	}
	iconv_close(cd);
	return out;
}

/* ---- parsing ---- */

// clang-format off
static const struct {
	const char *word;
	enum vmdk_type type;
} extent_types[] = {
	{"FLAT", TYPE_FLAT},	   {"SPARSE", TYPE_SPARSE},	{"ZERO", TYPE_ZERO},
	{"VMFS", TYPE_VMFS},	   {"VMFSSPARSE", TYPE_COWD},	{"SESPARSE", TYPE_SESPARSE},
	{"VMFSRDM", TYPE_RDM},	   {"VMFSRAW", TYPE_RDM},	{"VMFSPASSTHROUGHRDM", TYPE_RDM},
};
// clang-format on

static bool parse_type(struct span w, enum vmdk_type *type)
{
	for (size_t i = 0; i < ARRAY_SIZE(extent_types); i++)
		if (span_is(w, extent_types[i].word)) {
			*type = extent_types[i].type;
			return true;
		}
	return false;
}

/* access sectors type ["name" [offset [more]]] */
static int parse_extent(struct vmdk_desc_extent *x, struct span line, const char *encoding,
			const char *path, struct error *err)
{
	struct span rest = line, w;

	is_extent_line(line, &x->access);
	next_word(&rest);
	if (!parse_number(next_word(&rest), &x->sectors) || x->sectors > VMDK_SECTORS_MAX)
		return err_set(err, EINVAL, "'%s': an extent has no sensible size: %.*s", path,
			       (int)MIN(line.len, 80u), line.p);
	w = next_word(&rest);
	if (!parse_type(w, &x->type))
		return err_set(err, ENOTSUP, "'%s': extents of type %.*s are not known", path,
			       (int)MIN(w.len, 40u), w.p);
	if (x->type == TYPE_ZERO)
		return 0;
	w = next_name(&rest);
	if (!w.len)
		return err_set(err, EINVAL, "'%s': an extent names no file: %.*s", path,
			       (int)MIN(line.len, 80u), line.p);
	x->name = name_to_utf8(w, encoding);
	if (!x->name)
		return err_errno(err, ENOMEM, "'%s'", path);
	w = next_word(&rest);
	if (w.len && (!parse_number(w, &x->offset) || x->offset > VMDK_SECTORS_MAX))
		return err_set(err, EINVAL, "'%s': the offset of an extent is not a number: %.*s",
			       path, (int)MIN(line.len, 80u), line.p);
	return 0;
}

static unsigned count_extents(const char *text)
{
	enum vmdk_access access;
	struct span line;
	unsigned n = 0;

	while (next_line(&text, &line))
		n += is_extent_line(trimmed(line), &access);
	return n;
}

static int parse_extents(struct vmdk_desc *d, const char *encoding, const char *path,
			 struct error *err)
{
	unsigned n = count_extents(d->text);
	const char *text = d->text;
	enum vmdk_access access;
	uint64_t total = 0;
	struct span line;
	int r = 0;

	if (n > VMDK_EXTENTS_MAX)
		return err_set(err, EFBIG, "'%s': %u extents are too many (at most %u)", path, n,
			       VMDK_EXTENTS_MAX);
	d->ext = calloc(n + 1, sizeof(*d->ext));
	if (!d->ext)
		return err_errno(err, ENOMEM, "'%s'", path);
	while (!r && next_line(&text, &line)) {
		line = trimmed(line);
		if (!is_extent_line(line, &access))
			continue;
		r = parse_extent(&d->ext[d->nr_ext++], line, encoding, path, err);
		total += d->ext[d->nr_ext - 1].sectors;
		if (!r && total > VMDK_SECTORS_MAX)
			r = err_set(err, EFBIG, "'%s': the extents together are too large", path);
	}
	return r;
}

static bool hex_value(const struct vmdk_desc *d, const char *key, uint32_t *n)
{
	char buf[16], *end;

	if (!vmdk_desc_value(d, key, buf, sizeof(buf)))
		return false;
	*n = (uint32_t)strtoul(buf, &end, 16);
	return end != buf && !*end;
}

/* What no key of ours opens. */
static int refuse_encrypted(const struct vmdk_desc *d, const char *path, struct error *err)
{
	char buf[256];

	if (vmdk_desc_value(d, "encryptionKeys", buf, sizeof(buf)) ||
	    (vmdk_desc_value(d, "ddb.iofilters", buf, sizeof(buf)) && strstr(buf, "vmcrypt")))
		return err_set(err, ENOTSUP,
			       "'%s' is encrypted by VMware; decrypt the VM there first", path);
	return 0;
}

static int parse_keys(struct vmdk_desc *d, const char *encoding, const char *path,
		      struct error *err)
{
	struct span value, line;
	char buf[16] = "1";

	vmdk_desc_value(d, "version", buf, sizeof(buf));
	if (strlen(buf) != 1 || buf[0] < '1' || buf[0] > '4')
		return err_set(err, ENOTSUP, "'%s': descriptor version %s; this build reads 1 to 4",
			       path, buf);
	if (!vmdk_desc_value(d, "createType", d->create_type, sizeof(d->create_type)))
		return err_set(err, EINVAL, "'%s': the descriptor has no createType line", path);
	d->parent_cid = CID_NONE;
	if (!hex_value(d, "CID", &d->cid))
		d->cid = 0xfffffffe; /* VDF: what a disk has before its first use */
	if (find_key(d->text, "parentCID", &value, &line) &&
	    !hex_value(d, "parentCID", &d->parent_cid))
		return err_set(err, EINVAL, "'%s': the parentCID is not a number", path);
	if (find_key(d->text, "parentFileNameHint", &value, &line) && value.len) {
		d->parent_hint = name_to_utf8(value, encoding);
		if (!d->parent_hint)
			return err_errno(err, ENOMEM, "'%s'", path);
	}
	return refuse_encrypted(d, path, err);
}

int vmdk_desc_parse(struct vmdk_desc *d, const char *text, size_t len, const char *path,
		    struct error *err)
{
	char encoding[40] = "";
	int r;

	memset(d, 0, sizeof(*d));
	if (len >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) {
		text += 3;
		len -= 3;
	}
	d->text = strndup(text, len);
	if (!d->text)
		return err_errno(err, ENOMEM, "'%s'", path);
	vmdk_desc_value(d, "encoding", encoding, sizeof(encoding));
	r = parse_keys(d, encoding, path, err);
	if (!r)
		r = parse_extents(d, encoding, path, err);
	if (r < 0)
		vmdk_desc_fini(d);
	return r;
}

void vmdk_desc_fini(struct vmdk_desc *d)
{
	for (unsigned i = 0; i < d->nr_ext; i++)
		free(d->ext[i].name);
	free(d->ext);
	free(d->parent_hint);
	free(d->text);
	memset(d, 0, sizeof(*d));
}

bool vmdk_desc_is(const struct vmdk_desc *d, const char *create_type)
{
	return !strcasecmp(d->create_type, create_type);
}

int vmdk_desc_probe(const uint8_t *head, size_t len)
{
	static const char magic[] = "# Disk DescriptorFile";
	char text[1024];
	size_t n = 0, skip = 0;
	struct span value, line;

	if (len >= 3 && !memcmp(head, "\xef\xbb\xbf", 3))
		skip = 3;
	while (skip < len && strchr(" \t\r\n", head[skip]) && head[skip])
		skip++;
	while (n < sizeof(text) - 1 && skip + n < len && head[skip + n]) {
		text[n] = (char)head[skip + n];
		n++;
	}
	text[n] = '\0';
	if (!strncasecmp(text, magic, sizeof(magic) - 1))
		return 100;
	return find_key(text, "version", &value, &line) && find_key(text, "CID", &value, &line) &&
			       find_key(text, "createType", &value, &line)
		       ? 80
		       : 0;
}

/* ---- changing ---- */

/* text[at, at + old) becomes the new string. */
static int text_replace(struct vmdk_desc *d, size_t at, size_t old, const char *with)
{
	size_t len = strlen(d->text), add = strlen(with);
	char *text = malloc(len - old + add + 1);

	if (!text)
		return -ENOMEM;
	memcpy(text, d->text, at);
	memcpy(text + at, with, add);
	memcpy(text + at + add, d->text + at + old, len - at - old + 1);
	free(d->text);
	d->text = text;
	return 0;
}

static int text_insert(struct vmdk_desc *d, size_t at, const char *key, const char *value,
		       bool quoted)
{
	const char *q = quoted ? "\"" : "";
	bool newline = at && d->text[at - 1] != '\n';
	bool spaced = !strncmp(key, "ddb.", 4); /* the data base is written with blanks */
	char *line = NULL;
	int r;

	if (asprintf(&line, "%s%s%s%s%s%s\n", newline ? "\n" : "", key, spaced ? " = " : "=", q,
		     value, q) < 0)
		return -ENOMEM;
	r = text_replace(d, at, 0, line);
	free(line);
	return r;
}

int vmdk_desc_set(struct vmdk_desc *d, const char *key, const char *value, bool quoted,
		  const char *after)
{
	struct span old, line;
	size_t at = strlen(d->text);

	if (find_key(d->text, key, &old, &line)) {
		if (!value)
			return text_replace(d, (size_t)(line.p - d->text), line.len, "");
		return text_replace(d, (size_t)(old.p - d->text), old.len, value);
	}
	if (!value)
		return 0;
	if (after && find_key(d->text, after, &old, &line))
		at = (size_t)(line.p - d->text) + line.len;
	return text_insert(d, at, key, value, quoted);
}

int vmdk_desc_set_sectors(struct vmdk_desc *d, unsigned extent, uint64_t sectors)
{
	const char *text = d->text;
	enum vmdk_access access;
	struct span line, w;
	char number[24];

	snprintf(number, sizeof(number), "%llu", (unsigned long long)sectors);
	while (next_line(&text, &line)) {
		line = trimmed(line);
		if (!is_extent_line(line, &access) || extent--)
			continue;
		next_word(&line);
		w = next_word(&line);
		return text_replace(d, (size_t)(w.p - d->text), w.len, number);
	}
	return -ENOENT;
}

/* Random, but neither of the two values that mean something (VDF "The Header"). */
uint32_t vmdk_random_cid(void)
{
	uint32_t cid;

	do {
		if (getrandom(&cid, sizeof(cid), 0) != sizeof(cid))
			cid = (uint32_t)(uintptr_t)&cid ^ 0x5bd1e995;
	} while (cid >= 0xfffffffe);
	return cid;
}

/* IDE disks have 16 heads, SCSI disks 255 (VDF "The Disk Database"). */
struct vmdk_geometry vmdk_geometry(uint64_t size, const char *adapter)
{
	struct vmdk_geometry g = {.heads = strcasecmp(adapter, "ide") ? 255 : 16, .sectors = 63};

	g.cylinders = size / SECTOR / (g.heads * g.sectors);
	return g;
}
