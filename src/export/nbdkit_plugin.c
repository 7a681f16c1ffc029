/* export/nbdkit_plugin.c - any disk image over NBD: the plugin that `hv disk serve` gives to
 * nbdkit.
 *
 *   nbdkit hv-nbdkit-plugin.so image=FILE [format=FMT] [allow-ref=DIR]... [snapshot=NAME]
 *          [secret=FILE] [password-file=FILE] [cacert=FILE] [pin=KEY] [writable=true]
 *
 * nbdkit speaks the protocol; all connections see one disk and what one flushes all have flushed.
 * Opened before nbdkit goes to the background, so that what is wrong is said on the terminal;
 * therefore without threads of our own. */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/error.h"
#include "block/format.h"
#include "source/source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

enum { MAX_REFS = 16, PREFERRED_IO = 64 * KiB, MAX_IO = 32 * MiB };

static struct {
	char *image, *format, *snapshot, *secret, *password_file, *cacert, *pin;
	char *ref[MAX_REFS];
	unsigned nr_refs;
	bool writable;
	struct blk *blk;
} disk;

static int set_text(char **to, const char *value)
{
	free(*to);
	*to = strdup(value);
	if (!*to)
		nbdkit_error("out of memory");
	return *to ? 0 : -1;
}

static int plugin_config(const char *key, const char *value)
{
	int on;

	if (!strcmp(key, "image"))
		return set_text(&disk.image, value);
	if (!strcmp(key, "format"))
		return set_text(&disk.format, value);
	if (!strcmp(key, "snapshot"))
		return set_text(&disk.snapshot, value);
	if (!strcmp(key, "secret"))
		return set_text(&disk.secret, value);
	if (!strcmp(key, "password-file"))
		return set_text(&disk.password_file, value);
	if (!strcmp(key, "cacert"))
		return set_text(&disk.cacert, value);
	if (!strcmp(key, "pin"))
		return set_text(&disk.pin, value);
	if (!strcmp(key, "allow-ref") && disk.nr_refs < MAX_REFS)
		return set_text(&disk.ref[disk.nr_refs++], value);
	if (!strcmp(key, "writable")) {
		on = nbdkit_parse_bool(value);
		disk.writable = on == 1;
		return on < 0 ? -1 : 0;
	}
	nbdkit_error("unknown parameter '%s'", key);
	return -1;
}

static int plugin_config_complete(void)
{
	if (!disk.image)
		nbdkit_error("image=FILE says what to serve");
	return disk.image ? 0 : -1;
}

/* The passphrase is all of the file but the line's end. */
static int read_secret(void *opaque, const char *path, char *buf, size_t cap)
{
	int fd = open(disk.secret, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, cap);
	int e = errno;

	if (fd >= 0)
		close(fd);
	while (n > 0 && (buf[n - 1] == '\n' || buf[n - 1] == '\r'))
		n--;
	return n < 0 ? -e : (int)n;
}

static int plugin_get_ready(void)
{
	const struct blk_remote_opts remote = {
		.password_file = disk.password_file, .ca_file = disk.cacert, .pin = disk.pin};
	const struct blk_open_opts opts = {.secret = disk.secret ? read_secret : NULL,
					   .allow_ref = (const char *const *)disk.ref,
					   .nr_allow_ref = disk.nr_refs,
					   .snapshot = disk.snapshot,
					   .remote = &remote};
	unsigned flags = BLK_NO_POOL | (disk.writable ? 0 : BLK_READONLY);
	struct error err;

	source_register();
	if (blk_open_with(&disk.blk, disk.image, disk.format, flags, &opts, &err) == 0)
		return 0;
	nbdkit_error("%s", err.msg);
	return -1;
}

static void plugin_unload(void)
{
	blk_close(disk.blk);
	free(disk.image);
	free(disk.format);
	free(disk.snapshot);
	free(disk.secret);
	free(disk.password_file);
	free(disk.cacert);
	free(disk.pin);
	for (unsigned i = 0; i < disk.nr_refs; i++)
		free(disk.ref[i]);
}

static void *plugin_open(int readonly)
{
	return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t plugin_get_size(void *handle)
{
	return (int64_t)blk_size(disk.blk);
}

static int plugin_can_write(void *handle)
{
	return !blk_info(disk.blk)->readonly;
}

static int plugin_yes(void *handle)
{
	return 1;
}

static int plugin_can_fua(void *handle)
{
	return NBDKIT_FUA_NATIVE;
}

static int plugin_block_size(void *handle, uint32_t *minimum, uint32_t *preferred,
			     uint32_t *maximum)
{
	*minimum = blk_info(disk.blk)->block_size;
	*preferred = PREFERRED_IO;
	*maximum = MAX_IO;
	return 0;
}

static int answer(int r)
{
	if (r == 0)
		return 0;
	nbdkit_set_error(-r);
	return -1;
}

static int flush_if(int r, uint32_t flags)
{
	return answer(r == 0 && flags & NBDKIT_FLAG_FUA ? blk_flush(disk.blk) : r);
}

static int plugin_pread(void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
	return answer(blk_read(disk.blk, buf, count, offset));
}

static int plugin_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset,
			 uint32_t flags)
{
	return flush_if(blk_write(disk.blk, buf, count, offset), flags);
}

static int plugin_flush(void *handle, uint32_t flags)
{
	return answer(blk_flush(disk.blk));
}

static int plugin_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	return flush_if(blk_discard(disk.blk, offset, count), flags);
}

static int plugin_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	return flush_if(blk_write_zeroes(disk.blk, offset, count, flags & NBDKIT_FLAG_MAY_TRIM),
			flags);
}

static int plugin_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
			  struct nbdkit_extents *extents)
{
	static const uint32_t type[] = {
		[BLK_EXT_DATA] = 0,
		[BLK_EXT_ZERO] = NBDKIT_EXTENT_ZERO,
		[BLK_EXT_HOLE] = NBDKIT_EXTENT_ZERO | NBDKIT_EXTENT_HOLE,
	};
	uint64_t end = offset + count, len;
	enum blk_extent what;

	for (; offset < end; offset += len) {
		int r;

		len = end - offset;
		r = blk_extent(disk.blk, offset, &len, &what);
		if (r < 0)
			return answer(r);
		if (nbdkit_add_extent(extents, offset, len, type[what]) < 0)
			return -1;
		if (flags & NBDKIT_FLAG_REQ_ONE)
			break;
	}
	return 0;
}

static struct nbdkit_plugin plugin = {
	.name = "hv",
	.longname = "Trivisor disk images",
	.description = "Serves disk images of any format and their chains.",
	.config = plugin_config,
	.config_complete = plugin_config_complete,
	.config_help = "image=FILE        what to serve (required)\n"
		       "format=FMT        its format; without it, guessed when read-only\n"
		       "allow-ref=DIR     where files may lie that the image names\n"
		       "secret=FILE       the passphrase of an encrypted image is in FILE\n"
		       "password-file=FILE, cacert=FILE, pin=KEY: for https://USER@HOST/...\n"
		       "snapshot=NAME     show this internal snapshot\n"
		       "writable=true     let clients write",
	.magic_config_key = "image",
	.get_ready = plugin_get_ready,
	.unload = plugin_unload,
	.open = plugin_open,
	.get_size = plugin_get_size,
	.block_size = plugin_block_size,
	.can_write = plugin_can_write,
	.can_flush = plugin_yes,
	.can_trim = plugin_can_write,
	.can_zero = plugin_can_write,
	.can_extents = plugin_yes,
	.can_fua = plugin_can_fua,
	.can_multi_conn = plugin_yes,
	.pread = plugin_pread,
	.pwrite = plugin_pwrite,
	.flush = plugin_flush,
	.trim = plugin_trim,
	.zero = plugin_zero,
	.extents = plugin_extents,
	.errno_is_preserved = 0,
};

NBDKIT_REGISTER_PLUGIN(plugin)
