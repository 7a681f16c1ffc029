/* recover/text.c - see text.h: lines of "key = value" and of extents. */
#include "recover/text.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- lines ---- */

static const char *next_line(const char *s)
{
	s += strcspn(s, "\r\n");
	return s + strspn(s, "\r\n");
}

/* Copies what stands between quotes, or up to a blank. */
static void copy_value(const char *s, char *buf, size_t cap)
{
	size_t n;

	if (*s == '"') {
		s++;
		n = strcspn(s, "\"\r\n");
	} else {
		n = strcspn(s, " \t\r\n");
	}
	n = n < cap ? n : cap - 1;
	memcpy(buf, s, n);
	buf[n] = 0;
}

/* "key = value": the value's place when the line is of this key. */
static const char *value_of(const char *line, const char *key)
{
	size_t n = strlen(key);

	line += strspn(line, " \t");
	if (strncasecmp(line, key, n) != 0)
		return NULL;
	line += n;
	line += strspn(line, " \t");
	if (*line != '=')
		return NULL;
	line++;
	return line + strspn(line, " \t");
}

bool vmx_value(const char *text, const char *key, char *buf, size_t cap)
{
	for (; *text; text = next_line(text)) {
		const char *v = value_of(text, key);

		if (!v)
			continue;
		copy_value(v, buf, cap);
		return true;
	}
	return false;
}

/* ---- descriptors ---- */

/* RW 1228800 VMFS "web-flat.vmdk" [OFFSET] */
static bool read_extent(const char *line, struct desc_extent *x)
{
	char access[12], type[16];
	unsigned long long sectors;
	int n = 0;

	if (sscanf(line, "%11s %llu %15s %n", access, &sectors, type, &n) < 3 || !n)
		return false;
	if (strcmp(access, "RW") != 0 && strcmp(access, "RDONLY") != 0 &&
	    strcmp(access, "NOACCESS") != 0)
		return false;
	*x = (struct desc_extent){.sectors = sectors};
	memcpy(x->type, type, sizeof(type));
	if (line[n] == '"')
		copy_value(line + n, x->name, sizeof(x->name));
	return true;
}

static uint32_t hex_value(const char *text, const char *key, uint32_t preset)
{
	char buf[32];

	return vmx_value(text, key, buf, sizeof(buf)) ? (uint32_t)strtoul(buf, NULL, 16) : preset;
}

void desc_read(struct desc *d, const char *text)
{
	memset(d, 0, sizeof(*d));
	d->cid = hex_value(text, "CID", 0);
	d->parent_cid = hex_value(text, "parentCID", 0xffffffffu);
	(void)vmx_value(text, "createType", d->create_type, sizeof(d->create_type));
	if (d->parent_cid != 0xffffffffu)
		(void)vmx_value(text, "parentFileNameHint", d->parent, sizeof(d->parent));
	for (; *text && d->nr_ext < DESC_EXTENTS; text = next_line(text)) {
		struct desc_extent *x = &d->ext[d->nr_ext];

		if (!isupper((unsigned char)*text) || !read_extent(text, x))
			continue;
		d->nr_ext++;
		if (x->sectors < BIT(53))
			d->sectors += x->sectors;
	}
}

/* ---- VMX ---- */

/* "scsi0:1.fileName": the slot's length; 0: no such key. */
static size_t slot_of(const char *line)
{
	static const char *const buses[] = {"scsi", "sata", "ide", "nvme"};
	const char *s = line;
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(buses) && !n; i++)
		if (!strncasecmp(s, buses[i], strlen(buses[i])))
			n = strlen(buses[i]);
	if (!n || !isdigit((unsigned char)s[n]))
		return 0;
	n += strspn(s + n, "0123456789");
	if (s[n] != ':' || !isdigit((unsigned char)s[n + 1]))
		return 0;
	n += 1 + strspn(s + n + 1, "0123456789");
	return n < 16 && !strncasecmp(s + n, ".fileName", 9) ? n : 0;
}

static bool is_disk(const char *text, const char *slot, const char *file)
{
	char key[48], value[64];
	size_t n = strlen(file);

	if (n < 6 || strcasecmp(file + n - 5, ".vmdk") != 0)
		return false;
	snprintf(key, sizeof(key), "%s.present", slot);
	if (vmx_value(text, key, value, sizeof(value)) && !strcasecmp(value, "FALSE"))
		return false;
	snprintf(key, sizeof(key), "%s.deviceType", slot);
	return !vmx_value(text, key, value, sizeof(value)) || !strcasestr(value, "cdrom");
}

void vmx_disks(const char *text, void (*disk)(void *opaque, const char *slot, const char *file),
	       void *opaque)
{
	for (const char *line = text; *line; line = next_line(line)) {
		const char *s = line + strspn(line, " \t"), *v;
		size_t n = slot_of(s);
		char slot[16], key[32], file[256];

		if (!n)
			continue;
		memcpy(slot, s, n);
		slot[n] = 0;
		snprintf(key, sizeof(key), "%s.fileName", slot);
		v = value_of(line, key);
		if (!v)
			continue;
		copy_value(v, file, sizeof(file));
		if (is_disk(text, slot, file))
			disk(opaque, slot, file);
	}
}
