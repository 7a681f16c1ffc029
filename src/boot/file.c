/* boot/file.c - reading kernel files; see load.h. */
#include "base/bytes.h"
#include "base/error.h"
#include "boot/load.h"
#include "mem/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int boot_file_open(struct boot_file *f, const char *path, struct error *err)
{
	struct stat st;
	int e;

	*f = (struct boot_file){.name = path};
	f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (f->fd < 0)
		return err_errno(err, errno, "cannot open '%s'", path);
	if (fstat(f->fd, &st) < 0) {
		e = errno;
		close(f->fd);
		return err_errno(err, e, "cannot read '%s'", path);
	}
	if (!S_ISREG(st.st_mode)) {
		close(f->fd);
		return err_set(err, EINVAL, "'%s' is not a regular file", path);
	}
	f->size = (uint64_t)st.st_size;
	return 0;
}

void boot_file_close(struct boot_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
}

int boot_file_read(const struct boot_file *f, uint64_t off, void *buf, size_t len,
		   struct error *err)
{
	uint8_t *p = buf;

	if (!range_inside(off, len, f->size))
		return err_set(err, EINVAL, "'%s': cut short, or its headers lie", f->name);
	if (f->fd < 0) {
		memcpy(buf, f->data + off, len);
		return 0;
	}
	while (len) {
		ssize_t n = pread(f->fd, p, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(err, errno, "cannot read '%s'", f->name);
		if (!n)
			return err_set(err, EIO, "'%s' became shorter while it was read", f->name);
		p += n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

int boot_file_to_mem(const struct boot_file *f, uint64_t off, struct mem *m, gpa_t gpa,
		     uint64_t len, struct error *err)
{
	uint64_t step;
	uint8_t *hva;
	int r;

	for (; len; gpa += step, off += step, len -= step) {
		step = mem_borrow(m, gpa, len, &hva);
		if (!step)
			return err_set(err, EFAULT, "'%s': no guest memory at %#llx", f->name,
				       (unsigned long long)gpa);
		r = boot_file_read(f, off, hva, step, err);
		if (r < 0)
			return r;
		mem_wrote(m, gpa, step);
	}
	return 0;
}
