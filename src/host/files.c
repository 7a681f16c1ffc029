/* host/files.c - see files.h. */
#include "host/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool full_path(const char *root, const char *path, char *full)
{
	return snprintf(full, PATH_MAX, "%s%s", root, path) < PATH_MAX;
}

bool host_read(const char *root, const char *path, char *text, size_t len)
{
	char full[PATH_MAX];
	size_t have = 0;
	ssize_t n;
	int fd;

	text[0] = 0;
	fd = full_path(root, path, full) ? open(full, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return false;
	while (have < len - 1 && (n = read(fd, text + have, len - 1 - have)) > 0)
		have += n;
	close(fd);
	if (have && text[have - 1] == '\n')
		have--;
	text[have] = 0;
	return true;
}

bool host_read_number(const char *root, const char *path, int64_t *value)
{
	char text[64], *end;

	if (!host_read(root, path, text, sizeof(text)))
		return false;
	*value = strtoll(text, &end, 10);
	return end != text;
}

bool host_exists(const char *root, const char *path)
{
	char full[PATH_MAX];

	return full_path(root, path, full) && access(full, F_OK) == 0;
}

bool host_read_choice(const char *root, const char *path, char *choice, size_t len)
{
	char text[256], *open, *close;

	choice[0] = 0;
	if (!host_read(root, path, text, sizeof(text)))
		return false;
	open = strchr(text, '[');
	close = open ? strchr(open, ']') : NULL;
	if (!close)
		return false;
	*close = 0;
	snprintf(choice, len, "%s", open + 1);
	return true;
}

int host_count_entries(const char *root, const char *path)
{
	char full[PATH_MAX];
	DIR *d = full_path(root, path, full) ? opendir(full) : NULL;
	int n = 0;

	if (!d)
		return -1;
	for (struct dirent *e; (e = readdir(d));)
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

bool host_has_word(const char *text, const char *word)
{
	size_t n = strlen(word);

	for (const char *p = text; (p = strstr(p, word)); p += n)
		if ((p == text || strchr(" \t", p[-1])) && strchr(" \t\n", p[n]))
			return true;
	return false;
}

/* Does the line begin with the words, each followed by a blank or the end? */
static bool line_begins(const char *line, const char *words)
{
	static const char blanks[] = " \t";

	line += strspn(line, blanks);
	while (*words) {
		size_t n = strcspn(words, " ");

		if (strncmp(line, words, n) || !strchr(" \t\n", line[n]))
			return false;
		line += n;
		line += strspn(line, blanks);
		words += n;
		words += strspn(words, " ");
	}
	return true;
}

bool host_file_has_line(const char *root, const char *path, const char *words)
{
	char full[PATH_MAX], *line = NULL;
	FILE *f = full_path(root, path, full) ? fopen(full, "re") : NULL;
	bool found = false;
	size_t len = 0;

	if (!f)
		return false;
	while (!found && getline(&line, &len, f) >= 0)
		found = line_begins(line, words);
	free(line);
	fclose(f);
	return found;
}
