/* source/archive.c - a disk inside an archive, or inside a compressed file (the library is
 * libarchive).
 *
 *   archive:FILE!MEMBER   a member of a tar (an .ova is one), zip, ...
 *   archive:FILE          its only disk image
 *   compressed:FILE       what a .gz, .xz, .zst, .bz2 file holds
 *
 * A member that lies in the archive as it is - an OVA's do - is read in place; anything else is
 * unpacked once, into a temporary file.  Archives are hostile: names are only compared, never used,
 * and what is unpacked is bounded by the room for temporary files. */
#include "base/error.h"
#include "block/format.h"
#include "source/source.h"
#include "source/spool.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READ_BLOCK = 256 * KiB, MAX_MEMBERS = 65536, PEEK = 4096 };

struct opened {
	struct archive *a;
	int fd;
	const char *path;
};

static void end(struct opened *o)
{
	if (o->a)
		archive_read_free(o->a);
	if (o->fd >= 0)
		close(o->fd);
}

static int failed(const struct opened *o, struct error *err)
{
	const char *words = archive_error_string(o->a);

	return err_set(err, EINVAL, "cannot unpack '%s': %s", o->path,
		       words ? words : "it is damaged");
}

static int open_regular(const char *path, int *fd, struct error *err)
{
	struct stat st;

	*fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (*fd < 0 || fstat(*fd, &st) < 0)
		return err_errno(err, errno, "cannot open '%s'", path);
	if (!S_ISREG(st.st_mode))
		return err_set(err, EINVAL, "'%s' is not a regular file", path);
	return 0;
}

static int begin(struct opened *o, const char *path, bool raw, struct error *err)
{
	int r;

	*o = (struct opened){.fd = -1, .path = path};
	r = open_regular(path, &o->fd, err);
	if (r < 0)
		return r;
	o->a = archive_read_new();
	if (!o->a)
		return err_errno(err, ENOMEM, "'%s'", path);
	archive_read_support_filter_gzip(o->a);
	archive_read_support_filter_xz(o->a);
	archive_read_support_filter_lzma(o->a);
	archive_read_support_filter_zstd(o->a);
	archive_read_support_filter_bzip2(o->a);
	archive_read_support_filter_lz4(o->a);
	if (raw) {
		archive_read_support_format_raw(o->a);
	} else {
		archive_read_support_format_tar(o->a);
		archive_read_support_format_zip(o->a);
		archive_read_support_format_7zip(o->a);
		archive_read_support_format_cpio(o->a);
	}
	if (archive_read_open_fd(o->a, o->fd, READ_BLOCK) != ARCHIVE_OK)
		return failed(o, err);
	return 0;
}

/* --- choosing the member ------------------------------------------------------------------------
 */

static bool looks_like_disk(const char *name)
{
	static const char *const ends[] = {".vmdk", ".qcow2", ".qcow", ".vhd", ".vhdx",
					   ".vdi",  ".img",   ".raw",  ".hdd", ".qed"};
	size_t n = strlen(name);

	for (unsigned i = 0; i < ARRAY_SIZE(ends); i++)
		if (n > strlen(ends[i]) && !strcasecmp(name + n - strlen(ends[i]), ends[i]))
			return true;
	return !strcmp(name, "disk");
}

static const char *plain(const char *name)
{
	return strncmp(name, "./", 2) ? name : name + 2;
}

/* Without a name: the only one that looks like a disk. */
static int choose_member(const char *path, char *member, size_t cap, struct error *err)
{
	char list[300] = "";
	struct archive_entry *e;
	struct opened o;
	unsigned found = 0, seen = 0;
	int r = begin(&o, path, false, err);

	while (r == 0 && seen++ < MAX_MEMBERS) {
		int step = archive_read_next_header(o.a, &e);
		const char *name = step < ARCHIVE_OK ? NULL : archive_entry_pathname(e);

		if (step == ARCHIVE_EOF)
			break;
		if (step < ARCHIVE_WARN)
			r = failed(&o, err);
		if (!name || r || archive_entry_filetype(e) != AE_IFREG ||
		    !looks_like_disk(plain(name)))
			continue;
		if (found++ == 0)
			snprintf(member, cap, "%s", plain(name));
		snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%s",
			 found > 1 ? ", " : "", plain(name));
	}
	end(&o);
	if (r == 0 && !found)
		r = err_set(err, ENOENT, "'%s' holds no disk image; name one: archive:%s!MEMBER",
			    path, path);
	else if (r == 0 && found > 1)
		r = err_set(err, EINVAL,
			    "'%s' holds several disks (%s); name one: archive:%s!MEMBER", path,
			    list, path);
	return r;
}

static int find_member(struct opened *o, const char *member, struct archive_entry **e,
		       struct error *err)
{
	for (unsigned seen = 0; seen < MAX_MEMBERS; seen++) {
		int step = archive_read_next_header(o->a, e);
		const char *name;

		if (step == ARCHIVE_EOF)
			break;
		if (step < ARCHIVE_WARN)
			return failed(o, err);
		name = archive_entry_pathname(*e);
		if (!name || strcmp(plain(name), plain(member)))
			continue;
		if (archive_entry_filetype(*e) != AE_IFREG || archive_entry_hardlink(*e))
			return err_set(err, EINVAL, "'%s' in '%s' is not a regular file", member,
				       o->path);
		return 0;
	}
	return err_set(err, ENOENT, "there is no '%s' in '%s'", member, o->path);
}

/* --- in place -----------------------------------------------------------------------------------
 */

struct slice {
	int fd;
	uint64_t start;
};

static int slice_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		       uint64_t off)
{
	const struct slice *s = b->priv;

	for (unsigned i = 0; i < n; i++) {
		for (size_t done = 0; done < iov[i].iov_len;) {
			ssize_t got = pread(s->fd, (char *)iov[i].iov_base + done,
					    iov[i].iov_len - done, (off_t)(s->start + off + done));

			if (got < 0 && errno == EINTR)
				continue;
			if (got <= 0)
				return got ? -errno : -EIO;
			done += (size_t)got;
		}
		off += iov[i].iov_len;
	}
	return 0;
}

static void slice_close(struct blk *b)
{
	struct slice *s = b->priv;

	close(s->fd);
	free(s);
}

static const struct blk_format slice_format = {
	.name = "member",
	.parallel = true,
	.close = slice_close,
	.readv = slice_readv,
};

/* Does the member lie in the file as it is, and where?  Believed only when the bytes agree. */
static bool lies_in_place(struct opened *o, struct archive_entry *e, uint64_t *start)
{
	uint8_t unpacked[PEEK], there[PEEK];
	int64_t at = archive_filter_bytes(o->a, 0), size = archive_entry_size(e);
	struct stat st;
	ssize_t n;

	if (archive_filter_count(o->a) > 1 || archive_entry_sparse_count(e) || at < 0 ||
	    size <= 0 || (archive_format(o->a) & ARCHIVE_FORMAT_BASE_MASK) != ARCHIVE_FORMAT_TAR)
		return false;
	if (fstat(o->fd, &st) < 0 || at > st.st_size || size > st.st_size - at)
		return false;
	n = archive_read_data(o->a, unpacked, (size_t)MIN((int64_t)PEEK, size));
	if (n <= 0 || pread(o->fd, there, (size_t)n, at) != n || memcmp(unpacked, there, (size_t)n))
		return false;
	*start = (uint64_t)at;
	return true;
}

static int open_slice(struct opened *o, uint64_t start, uint64_t size, unsigned flags,
		      struct blk **file, struct error *err)
{
	struct blk_info info = {.size = size, .block_size = 512};
	struct slice *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return err_errno(err, ENOMEM, "'%s'", o->path);
	s->fd = o->fd;
	s->start = start;
	r = blk_wrap(file, &slice_format, s, &info, flags, err);
	if (r < 0)
		free(s);
	else
		o->fd = -1; /* the disk's */
	return r;
}

/* --- unpacking ----------------------------------------------------------------------------------
 */

static int spool_entry(struct opened *o, struct spool *s, struct error *err)
{
	uint8_t *buf = malloc(READ_BLOCK);
	int r = 0;

	if (!buf)
		return err_errno(err, ENOMEM, "'%s'", o->path);
	for (;;) {
		/* Also fills the holes of a sparse member with zeroes. */
		ssize_t n = archive_read_data(o->a, buf, READ_BLOCK);

		if (n < 0)
			r = failed(o, err);
		if (n <= 0)
			break;
		r = spool_append(s, buf, (size_t)n, err);
		if (r < 0)
			break;
	}
	free(buf);
	return r;
}

static int unpack(struct opened *o, unsigned flags, struct blk **file, struct error *err)
{
	struct spool *s;
	int r = spool_create(&s, err);

	if (r < 0)
		return r;
	r = spool_entry(o, s, err);
	if (r < 0) {
		spool_destroy(s);
		return r;
	}
	return spool_finish(s, flags, file, err);
}

static int open_member(const char *path, const char *member, unsigned flags, struct blk **file,
		       struct error *err)
{
	struct archive_entry *e;
	struct opened o;
	uint64_t start;
	int r = begin(&o, path, false, err);

	if (r == 0)
		r = find_member(&o, member, &e, err);
	if (r == 0 && lies_in_place(&o, e, &start)) {
		r = open_slice(&o, start, (uint64_t)archive_entry_size(e), flags, file, err);
	} else if (r == 0) { /* what was read to look cannot be put back */
		end(&o);
		r = begin(&o, path, false, err);
		if (r == 0)
			r = find_member(&o, member, &e, err);
		if (r == 0)
			r = unpack(&o, flags, file, err);
	}
	end(&o);
	return r;
}

/* --- the sources --------------------------------------------------------------------------------
 */

static int refuse_writing(const char *name, unsigned flags, struct error *err)
{
	return flags & BLK_READONLY
		       ? 0
		       : err_set(err, EROFS, "'%s': what is packed can only be read", name);
}

static int archive_open(struct blk **file, const char *name, unsigned flags,
			const struct blk_open_opts *opts, struct error *err)
{
	const char *spec = strchr(name, ':') + 1, *bang = strrchr(spec, '!');
	char member[1024];
	char *path;
	int r = refuse_writing(name, flags, err);

	if (r < 0)
		return r;
	path = bang ? strndup(spec, (size_t)(bang - spec)) : strdup(spec);
	if (!path)
		return err_errno(err, ENOMEM, "'%s'", name);
	if (!bang)
		r = choose_member(path, member, sizeof(member), err);
	if (r == 0)
		r = open_member(path, bang ? bang + 1 : member, flags, file, err);
	free(path);
	return r;
}

static int compressed_open(struct blk **file, const char *name, unsigned flags,
			   const struct blk_open_opts *opts, struct error *err)
{
	const char *path = strchr(name, ':') + 1;
	struct archive_entry *e;
	struct opened o = {.fd = -1};
	int r = refuse_writing(name, flags, err);

	if (r == 0)
		r = begin(&o, path, true, err);
	if (r == 0 && archive_filter_count(o.a) < 2)
		r = err_set(err, EINVAL, "'%s' is not compressed (gzip, xz, zstd, bzip2, lz4)",
			    path);
	if (r == 0 && archive_read_next_header(o.a, &e) != ARCHIVE_OK)
		r = failed(&o, err);
	if (r == 0)
		r = unpack(&o, flags, file, err);
	end(&o);
	return r;
}

const struct blk_source source_archive = {
	.scheme = "archive",
	.help = "archive:FILE[!MEMBER]: a disk inside a tar, zip, 7z or cpio archive",
	.open = archive_open,
};
const struct blk_source source_ova = {
	.scheme = "ova",
	.help = "ova:FILE[!MEMBER]: a disk inside a virtual appliance",
	.open = archive_open,
};
const struct blk_source source_compressed = {
	.scheme = "compressed",
	.help = "compressed:FILE: what a .gz, .xz, .zst, .bz2 or .lz4 file holds",
	.open = compressed_open,
};

/* --- plain names --------------------------------------------------------------------------------
 */

enum { TAR_MAGIC_AT = 257, HEAD = 512 };
enum packing { PACK_NONE, PACK_STREAM, PACK_ARCHIVE };

static bool begins(const uint8_t *head, size_t n, const void *magic, size_t len)
{
	return n >= len && !memcmp(head, magic, len);
}

static bool is_tar(const uint8_t *head, size_t n)
{
	return n >= TAR_MAGIC_AT + 5 && !memcmp(head + TAR_MAGIC_AT, "ustar", 5);
}

/* RFC 1952, RFC 8878, and what the xz, bzip2, LZ4 frame, zip and 7z formats begin with. */
static enum packing packing_of(const uint8_t *head, size_t n)
{
	// clang-format off
	static const struct {
		const char *magic;
		size_t len;
		enum packing packing;
	} known[] = {
		{"\x1f\x8b\x08", 3, PACK_STREAM},
		{"\xfd" "7zXZ\0", 6, PACK_STREAM},
		{"\x28\xb5\x2f\xfd", 4, PACK_STREAM},
		{"BZh", 3, PACK_STREAM},
		{"\x04\x22\x4d\x18", 4, PACK_STREAM},
		{"PK\3\4", 4, PACK_ARCHIVE},
		{"7z\xbc\xaf\x27\x1c", 6, PACK_ARCHIVE},
	};
	// clang-format on

	for (unsigned i = 0; i < ARRAY_SIZE(known); i++)
		if (begins(head, n, known[i].magic, known[i].len))
			return known[i].packing;
	return is_tar(head, n) ? PACK_ARCHIVE : PACK_NONE;
}

static bool is_named_packed(const char *name)
{
	static const char *const ends[] = {".gz",  ".xz",  ".zst", ".bz2", ".lz4", ".tar",
					   ".tgz", ".txz", ".ova", ".box", ".zip", ".7z"};
	size_t n = strlen(name);

	for (unsigned i = 0; i < ARRAY_SIZE(ends); i++)
		if (n > strlen(ends[i]) && !strcasecmp(name + n - strlen(ends[i]), ends[i]))
			return true;
	return false;
}

static ssize_t read_head(const char *path, uint8_t *head)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	ssize_t n = -1;

	if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
		n = pread(fd, head, HEAD, 0);
	if (fd >= 0)
		close(fd);
	return n;
}

/* A tar in a compressed file is an archive. */
static int look_inside(const char *path, enum packing *packing, struct error *err)
{
	struct archive_entry *e;
	struct opened o;
	uint8_t head[HEAD];
	ssize_t n;
	int r = begin(&o, path, true, err);

	if (r == 0 && archive_read_next_header(o.a, &e) != ARCHIVE_OK)
		r = failed(&o, err);
	if (r == 0) {
		n = archive_read_data(o.a, head, sizeof(head));
		if (n < 0)
			r = failed(&o, err);
		else if (is_tar(head, (size_t)n))
			*packing = PACK_ARCHIVE;
	}
	end(&o);
	return r;
}

static int packed_name(const char *path, enum packing packing, char **name, struct error *err)
{
	char member[1024];
	int r = 0;

	if (packing == PACK_STREAM) {
		r = asprintf(name, "compressed:%s", path);
	} else {
		r = choose_member(path, member, sizeof(member), err);
		if (r < 0)
			return r;
		r = asprintf(name, "archive:%s!%s", path, member);
	}
	if (r >= 0)
		return 0;
	*name = NULL;
	return err_errno(err, ENOMEM, "'%s'", path);
}

int source_unpack_name(const char *path, bool by_name, char **name, struct error *err)
{
	enum packing packing;
	uint8_t head[HEAD];
	ssize_t n;
	int r = 0;

	*name = NULL;
	if (by_name && !is_named_packed(path))
		return 0;
	n = read_head(path, head);
	packing = n > 0 ? packing_of(head, (size_t)n) : PACK_NONE;
	if (packing == PACK_NONE)
		return 0;
	if (packing == PACK_STREAM)
		r = look_inside(path, &packing, err);
	return r < 0 ? r : packed_name(path, packing, name, err);
}
