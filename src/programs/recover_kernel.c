/* recover_kernel.c - see recover_kernel.h. */
#include "programs/recover_kernel.h"

#include "base/error.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct choice {
	char kernel[PATH_MAX / 4], initrd[PATH_MAX / 4], append[RECOVER_APPEND_MAX];
};

/* --- GRUB's configuration ----------------------------------------------------------------------
 */

/* The next word of a line, without quotes; false at its end. */
static bool next_word(const char **p, char *word, size_t cap)
{
	size_t n = 0;
	char quote = 0;

	while (**p == ' ' || **p == '\t')
		(*p)++;
	if (!**p || **p == '\n' || **p == '#')
		return false;
	for (; **p && **p != '\n' && (quote || (**p != ' ' && **p != '\t')); (*p)++) {
		if (!quote && (**p == '"' || **p == '\''))
			quote = **p;
		else if (quote && **p == quote)
			quote = 0;
		else if (n + 1 < cap)
			word[n++] = **p;
	}
	word[n] = 0;
	return true;
}

/* "(hd0,gpt2)/vmlinuz" and "$root/vmlinuz" are "/vmlinuz". */
static const char *plain_path(const char *path)
{
	const char *slash = strchr(path, '/');

	return slash ? slash : path;
}

static bool is_linux(const char *word)
{
	return !strcmp(word, "linux") || !strcmp(word, "linux16") || !strcmp(word, "linuxefi");
}

static bool is_initrd(const char *word)
{
	return !strcmp(word, "initrd") || !strcmp(word, "initrd16") || !strcmp(word, "initrdefi");
}

static void take_linux(const char *line, struct choice *c)
{
	char word[PATH_MAX / 4];
	size_t used = 0;

	if (!next_word(&line, word, sizeof(word)))
		return;
	snprintf(c->kernel, sizeof(c->kernel), "%s", plain_path(word));
	while (next_word(&line, word, sizeof(word))) {
		int n = strchr(word, '$') ? 0 /* GRUB's variables are not ours to expand */
					  : snprintf(c->append + used, sizeof(c->append) - used,
						     "%s%s", used ? " " : "", word);

		if (n < 0 || used + (size_t)n >= sizeof(c->append))
			break;
		used += (size_t)n;
	}
	c->append[used] = 0;
}

/* The first entry, which is what GRUB boots when nobody chooses. */
static bool parse_grub(const char *text, struct choice *c)
{
	char word[64];

	*c = (struct choice){0};
	for (const char *line = text; *line; line = strchrnul(line, '\n'), line += *line != 0) {
		const char *p = line;

		if (!next_word(&p, word, sizeof(word)))
			continue;
		if (is_linux(word) && !*c->kernel) {
			take_linux(p, c);
		} else if (is_initrd(word) && *c->kernel && !*c->initrd) {
			if (next_word(&p, c->initrd, sizeof(c->initrd)))
				memmove(c->initrd, plain_path(c->initrd),
					strlen(plain_path(c->initrd)) + 1);
			return true;
		} else if (!strcmp(word, "}") && *c->kernel) {
			return true; /* an entry without an initrd */
		}
	}
	return *c->kernel;
}

static int from_grub(struct guestfs *g, unsigned part, struct choice *c)
{
	static const char *const places[] = {"/boot/grub/grub.cfg", "/grub/grub.cfg",
					     "/boot/grub2/grub.cfg", "/grub2/grub.cfg"};

	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		struct guestfs_file f;
		size_t len;
		char *text;
		int r = guestfs_read(g, part, places[i], MiB, &text, &len, NULL);

		if (r < 0)
			continue;
		r = parse_grub(text, c) && guestfs_stat(g, part, c->kernel, &f, NULL) == 0;
		free(text);
		if (r)
			return 0;
	}
	return -ENOENT;
}

/* --- the newest kernel -------------------------------------------------------------------------
 */

struct newest {
	char version[128];
};

static int consider(void *opaque, const struct guestfs_file *f)
{
	struct newest *n = opaque;
	const char *version = f->name + strlen("vmlinuz-");

	if (!f->is_dir && !strncmp(f->name, "vmlinuz-", strlen("vmlinuz-")) &&
	    !strstr(version, "rescue") && strlen(version) < sizeof(n->version) &&
	    strverscmp(version, n->version) > 0)
		strcpy(n->version, version);
	return 0;
}

static bool there(struct guestfs *g, unsigned part, const char *path)
{
	struct guestfs_file f;

	return guestfs_stat(g, part, path, &f, NULL) == 0 && !f.is_dir;
}

static void name_root(struct guestfs *g, unsigned part, unsigned disk, struct choice *c)
{
	const struct guestfs_part *list;
	char number[16] = "";

	guestfs_parts(g, &list);
	if (list[part].number)
		snprintf(number, sizeof(number), "%u", list[part].number);
	snprintf(c->append, sizeof(c->append), "root=/dev/vd%c%s ro", 'a' + (int)(disk % 26),
		 number);
}

static int from_directory(struct guestfs *g, unsigned part, unsigned disk, const char *dir,
			  struct choice *c)
{
	static const char *const initrds[] = {"%s/initrd.img-%s", "%s/initramfs-%s.img",
					      "%s/initrd-%s"};
	struct newest n = {0};

	*c = (struct choice){0};
	if (guestfs_list(g, part, *dir ? dir : "/", consider, &n, NULL) < 0 || !*n.version)
		return -ENOENT;
	snprintf(c->kernel, sizeof(c->kernel), "%s/vmlinuz-%s", dir, n.version);
	for (size_t i = 0; i < ARRAY_SIZE(initrds) && !*c->initrd; i++) {
		char path[sizeof(c->initrd)];

		snprintf(path, sizeof(path), initrds[i], dir, n.version);
		if (there(g, part, path))
			strcpy(c->initrd, path);
	}
	/* Where the kernel lies in /boot of a root file system, that is the root. */
	if (*dir)
		name_root(g, part, disk, c);
	return 0;
}

/* --- what the board differs in -----------------------------------------------------------------
 */

/* The VM had SCSI or SATA disks, here they are virtio: /dev/sda1 is /dev/vda1. */
static void adapt(const char *from, char *to, size_t cap)
{
	size_t used = 0;

	for (; *from && used + 1 < cap; from++) {
		bool disk = !strncmp(from, "/dev/sd", 7) || !strncmp(from, "/dev/hd", 7);

		if (disk && used + 7 < cap) {
			memcpy(to + used, "/dev/vd", 7);
			used += 7;
			from += 6;
		} else {
			to[used++] = *from;
		}
	}
	to[used] = 0;
}

static void finish_append(struct recover_kernel *k, const char *text)
{
	static const char console[] = " console=tty0 console=ttyS0";

	adapt(text, k->append, sizeof(k->append) - sizeof(console));
	if (!strstr(k->append, "console=ttyS"))
		strcat(k->append, console);
}

static int load(struct guestfs *g, unsigned part, const struct choice *c, struct recover_kernel *k,
		struct error *err)
{
	const struct guestfs_part *list;
	int r = guestfs_read(g, part, c->kernel, RECOVER_KERNEL_MAX, &k->kernel, &k->kernel_len,
			     err);

	if (r == 0 && *c->initrd)
		r = guestfs_read(g, part, c->initrd, RECOVER_KERNEL_MAX, &k->initrd, &k->initrd_len,
				 err);
	if (r < 0)
		return r;
	guestfs_parts(g, &list);
	finish_append(k, c->append);
	if (list[part].number)
		snprintf(k->from, sizeof(k->from), "%s of partition %u", c->kernel,
			 list[part].number);
	else
		snprintf(k->from, sizeof(k->from), "%s", c->kernel);
	return 0;
}

int recover_kernel_find(struct guestfs *g, unsigned disk, struct recover_kernel *k,
			struct error *err)
{
	const struct guestfs_part *list;
	unsigned n = guestfs_parts(g, &list);
	struct choice *c = malloc(sizeof(*c));
	int r = c ? -ENOENT : -ENOMEM;

	*k = (struct recover_kernel){0};
	for (unsigned i = 0; i < n && r == -ENOENT; i++)
		if (list[i].readable && from_grub(g, i, c) == 0)
			r = load(g, i, c, k, err);
	for (unsigned i = 0; i < n && r == -ENOENT; i++)
		if (list[i].readable && (from_directory(g, i, disk, "/boot", c) == 0 ||
					 from_directory(g, i, disk, "", c) == 0))
			r = load(g, i, c, k, err);
	free(c);
	if (r == -ENOENT)
		return err_set(err, ENOENT, "no Linux kernel was found on the disk");
	return r;
}

void recover_kernel_free(struct recover_kernel *k)
{
	free(k->kernel);
	free(k->initrd);
	*k = (struct recover_kernel){0};
}
