/* base/tmpfile.c - see tmpfile.h. */
#include "base/tmpfile.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Where the file system cannot make one without a name. */
static int open_and_unlink(const char *dir)
{
	char path[512];
	int fd;

	if (snprintf(path, sizeof(path), "%s/hv.XXXXXX", dir) >= (int)sizeof(path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	fd = mkostemp(path, O_CLOEXEC);
	if (fd >= 0)
		unlink(path);
	return fd;
}

int tmpfile_open(struct error *err)
{
	const char *dir = getenv("TMPDIR");
	int fd;

	if (!dir || !*dir)
		dir = "/var/tmp";
	fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL))
		fd = open_and_unlink(dir);
	if (fd < 0)
		return err_errno(err, errno,
				 "cannot make a temporary file in '%s' (TMPDIR names the place)",
				 dir);
	return fd;
}
