/* cmd_disk.c - hv disk: starts hv-disk, which lies beside hv or where it was installed. */
#include "programs/hv.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The path of hv-disk in the directory hv was started from. */
static int beside_us(char *path, size_t cap)
{
	ssize_t n = readlink("/proc/self/exe", path, cap);
	char *slash;

	if (n <= 0 || (size_t)n >= cap)
		return -ENOENT;
	path[n] = 0;
	slash = strrchr(path, '/');
	if (!slash || (size_t)(slash - path) + sizeof("/hv-disk") > cap)
		return -ENOENT;
	strcpy(slash, "/hv-disk");
	return access(path, X_OK) < 0 ? -errno : 0;
}

int cmd_disk(int argc, char **argv)
{
	char path[PATH_MAX];

	if (beside_us(path, sizeof(path)) < 0)
		snprintf(path, sizeof(path), "%s/hv-disk", HV_LIBEXECDIR);
	argv[0] = (char *)(uintptr_t) "hv-disk";
	execv(path, argv);
	fprintf(stderr, "hv disk: cannot start '%s': %s\n", path, strerror(errno));
	return HV_EXIT_FAILED;
}
