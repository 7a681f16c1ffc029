/* recover/text.h - VMX files and VMDK descriptors, as far as recovery reads them.
 *
 * Who may call: recover/ only.  Texts are NUL-terminated and hostile: nothing here trusts a length
 * or a number, and what does not fit is cut or left out.  No state, no errors. */
#pragma once

#include "base/types.h"

enum { DESC_EXTENTS = 64 };

struct desc_extent {
	uint64_t sectors;
	char type[16];
	char name[160];
};

struct desc {
	uint32_t cid, parent_cid;
	char create_type[40];
	char parent[160]; /* parentFileNameHint, or "" */
	struct desc_extent ext[DESC_EXTENTS];
	unsigned nr_ext;
	uint64_t sectors; /* of all */
};
void desc_read(struct desc *d, const char *text);

/* The value of a key without its quotes; keys ignore case.  False: it is not there. */
bool vmx_value(const char *text, const char *key, char *buf, size_t cap);
/* Each hard disk that a VMX has: "scsi0:0", its file. */
void vmx_disks(const char *text, void (*disk)(void *opaque, const char *slot, const char *file),
	       void *opaque);
