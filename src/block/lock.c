/* block/lock.c - who else uses this file?
 *
 * One writer, or any number of readers.  The locks belong to the open file, not to the process
 * (fcntl(2) "Open file description locks"), and go away with it.  They are the bytes that QEMU and
 * its tools lock (QEMU's documentation, "Image locking"), so that they and we see each other: byte
 * 100 + n says "I use permission n", byte 200 + n "I do not share it", both by shared locks; who
 * comes later looks whether somebody else holds the opposite. */
#include "block/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>

enum {
	USES = 100,
	KEEPS = 200,
	CONSISTENT_READ = 1 << 0,
	WRITE = 1 << 1,
	RESIZE = 1 << 3,
	NR_PERMISSIONS = 4,
};

static struct flock byte_lock(short type, off_t byte)
{
	return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
}

static int take_bytes(int fd, off_t base, unsigned permissions)
{
	for (unsigned i = 0; i < NR_PERMISSIONS; i++) {
		struct flock fl = byte_lock(F_RDLCK, base + i);

		if (permissions >> i & 1 && fcntl(fd, F_OFD_SETLK, &fl) < 0)
			return -errno;
	}
	return 0;
}

/* -EBUSY when somebody else holds one of them. */
static int look_at_bytes(int fd, off_t base, unsigned permissions)
{
	for (unsigned i = 0; i < NR_PERMISSIONS; i++) {
		struct flock fl = byte_lock(F_WRLCK, base + i);

		if (!(permissions >> i & 1))
			continue;
		if (fcntl(fd, F_OFD_GETLK, &fl) < 0)
			return -errno;
		if (fl.l_type != F_UNLCK)
			return -EBUSY;
	}
	return 0;
}

int blk_lock_fd(int fd, bool readonly)
{
	unsigned uses = readonly ? CONSISTENT_READ : CONSISTENT_READ | WRITE | RESIZE;
	unsigned keeps = WRITE | RESIZE;
	int r = take_bytes(fd, USES, uses);

	if (r == 0)
		r = take_bytes(fd, KEEPS, keeps);
	if (r == 0)
		r = look_at_bytes(fd, KEEPS, uses);
	if (r == 0)
		r = look_at_bytes(fd, USES, keeps);
	if (r == -EAGAIN || r == -EACCES)
		return -EBUSY;
	if (r == 0 || r == -EBUSY)
		return r;
	/* No such locks on this file system: those that only we know. */
	if (flock(fd, (readonly ? LOCK_SH : LOCK_EX) | LOCK_NB) == 0)
		return 0;
	return errno == EWOULDBLOCK ? -EBUSY : -errno;
}
