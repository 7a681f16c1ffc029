/* disk/journal.c - see journal.h. */
#include "disk/journal.h"

#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAGIC "Trivisor job 1"

int disk_journal_load(const char *path, const char *key, uint64_t *done)
{
	char *line = NULL;
	size_t cap = 0;
	unsigned long long v;
	FILE *f = fopen(path, "re");
	int found = 0;

	if (!f)
		return 0;
	if (getline(&line, &cap, f) > 0 && !strcmp(line, MAGIC "\n") &&
	    getline(&line, &cap, f) > 0) {
		line[strcspn(line, "\n")] = 0;
		found = !strcmp(line, key) && fscanf(f, "done %llu end", &v) == 1;
	}
	if (found)
		*done = v;
	free(line);
	fclose(f);
	return found;
}

static int write_all(FILE *f, const char *key, uint64_t done)
{
	fprintf(f, MAGIC "\n%s\ndone %llu end\n", key, (unsigned long long)done);
	if (fflush(f) || fsync(fileno(f)) < 0)
		return -errno;
	return 0;
}

int disk_journal_save(const char *path, const char *key, uint64_t done, struct error *err)
{
	char *tmp = NULL;
	FILE *f;
	int r;

	if (asprintf(&tmp, "%s.new", path) < 0)
		return err_errno(err, ENOMEM, "'%s'", path);
	f = fopen(tmp, "we");
	r = f ? write_all(f, key, done) : -errno;
	if (f && fclose(f) && !r)
		r = -errno;
	if (!r && rename(tmp, path) < 0)
		r = -errno;
	if (r < 0) {
		unlink(tmp);
		err_errno(err, -r, "cannot write the journal '%s'", path);
	}
	free(tmp);
	return r;
}

void disk_journal_remove(const char *path)
{
	unlink(path);
}
