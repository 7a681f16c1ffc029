/* helper_program.c - starting hv-disk and hv-recover, which lie beside hv or where they were
 * installed: what runs guests is a program of its own. */
#include "programs/hv.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The path of a program in the directory hv was started from. */
static int beside_us(const char *name, char *path, size_t cap)
{
	ssize_t n = readlink("/proc/self/exe", path, cap);
	char *slash;

	if (n <= 0 || (size_t)n >= cap)
		return -ENOENT;
	path[n] = 0;
	slash = strrchr(path, '/');
	if (!slash || (size_t)(slash - path) + strlen(name) + 2 > cap)
		return -ENOENT;
	strcpy(slash + 1, name);
	return access(path, X_OK) < 0 ? -errno : 0;
}

int run_helper(const char *command, const char *name, char **argv)
{
	char path[PATH_MAX];

	/* It may want to start us again. */
	if (beside_us("hv", path, sizeof(path)) == 0)
		setenv("TRIVISOR_HV", path, 1);
	if (beside_us(name, path, sizeof(path)) < 0)
		snprintf(path, sizeof(path), "%s/%s", HV_LIBEXECDIR, name);
	argv[0] = (char *)(uintptr_t)name;
	execv(path, argv);
	fprintf(stderr, "hv %s: cannot start '%s': %s\n", command, path, strerror(errno));
	return HV_EXIT_FAILED;
}
