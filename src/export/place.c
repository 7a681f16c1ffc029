/* export/place.c - see place.h. */
#include "export/place.h"

#include "base/error.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

static int check_directory(const char *dir, struct error *err)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	bool empty = true;

	if (!d && errno == ENOTDIR)
		return err_set(err, ENOTDIR, "cannot mount on '%s': it is not a directory", dir);
	if (!d && errno == ENOTCONN)
		return err_set(err, ENOTCONN,
			       "cannot mount on '%s': a mount that died is there (fusermount3 -u "
			       "'%s' takes it away)",
			       dir, dir);
	if (!d)
		return err_errno(err, errno, "cannot mount on '%s'", dir);
	while (empty && (e = readdir(d)))
		empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
	closedir(d);
	return empty ? 0
		     : err_set(err, ENOTEMPTY,
			       "cannot mount on '%s': it is not empty, and what is in it would be "
			       "hidden",
			       dir);
}

int mount_place_check(const char *dir, const char *instead, struct error *err)
{
	int r = check_directory(dir, err);

	if (r < 0)
		return r;
	if (access("/dev/fuse", F_OK) < 0)
		return err_set(
			err, ENODEV,
			"cannot mount: there is no /dev/fuse (modprobe fuse; in a container, "
			"give it that device%s%s%s)",
			instead ? "; '" : "", instead ? instead : "",
			instead ? "' needs none" : "");
	if (access("/dev/fuse", R_OK | W_OK) < 0)
		return err_errno(err, errno, "cannot mount: /dev/fuse");
	return 0;
}
