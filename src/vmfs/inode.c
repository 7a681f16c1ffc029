/* vmfs/inode.c - file descriptors: their bytes as a struct vmfs_inode. */
#include "vmfs/internal.h"

#include <stdlib.h>
#include <sys/stat.h>

enum { MIN_SHIFT = 9, MAX_SHIFT = 40 };

static bool is_directory(const struct vmfs_inode *in)
{
	return in->type == VMFS_DIR || (in->type == VMFS_SYSTEM && S_ISDIR(in->mode));
}

/* The field is 0 on VMFS3, and to be trusted only where it is a size that can be. */
static unsigned block_shift(const struct vmfs_geometry *g, const struct vmfs_inode *in,
			    unsigned field)
{
	if (field >= MIN_SHIFT && field <= MAX_SHIFT)
		return field;
	if (is_pow2(in->block_size) && in->block_size >= BIT(MIN_SHIFT) &&
	    in->block_size <= BIT(MAX_SHIFT))
		return log2_of(in->block_size);
	return log2_of(in->zla == FS_ZLA_SB ? g->sub_block_size : g->file_block_size);
}

static void parse_fields(const struct vmfs_geometry *g, const uint8_t *m, struct vmfs_inode *in)
{
	in->generation = le32_load(m + FS_FD_GENERATION);
	in->links = le32_load(m + FS_FD_LINKS);
	in->flags = le32_load(m + FS_FD_FLAGS);
	in->length = le64_load(m + FS_FD_LENGTH);
	in->block_size = le64_load(m + FS_FD_BLOCK_SIZE);
	in->nr_blocks = le64_load(m + FS_FD_BLOCKS);
	in->mtime = le32_load(m + FS_FD_MTIME);
	in->ctime = le32_load(m + FS_FD_CTIME);
	in->atime = le32_load(m + FS_FD_ATIME);
	in->uid = le32_load(m + FS_FD_UID);
	in->gid = le32_load(m + FS_FD_GID);
	in->mode = le32_load(m + FS_FD_MODE);
	in->zla = le32_load(m + FS_FD_ZLA);
	in->nr_tbz = le32_load(m + FS_FD_TBZ);
	in->parent = g->version == 6 ? le32_load(m + FS_FD_PARENT) : 0;
	in->resident = in->zla == FS_ZLA_RESIDENT;
	in->block_shift = block_shift(g, in, m[FS_FD_BLOCK_SHIFT]);
	in->is_dir = is_directory(in);
}

static void parse_addresses(const struct vmfs_geometry *g, const uint8_t *fd, struct vmfs_inode *in)
{
	if (g->version == 6) {
		const uint8_t *a = fd + g->fd_size - FS_FD_ADDRS_6 * 8;

		in->nr_addr = FS_FD_ADDRS_6;
		for (unsigned i = 0; i < FS_FD_ADDRS_6; i++)
			in->address[i] = le64_load(a + 8ull * i);
		memcpy(in->data, fd + g->md_align + FS_FD_META_SIZE, FS_FD_SMALL_6);
		return;
	}
	in->nr_addr = FS_FD_ADDRS_5;
	for (unsigned i = 0; i < FS_FD_ADDRS_5; i++)
		in->address[i] = le32_load(fd + 2 * FS_SECTOR + 4ull * i);
	memset(in->address + FS_FD_ADDRS_5, 0, sizeof(in->address) - FS_FD_ADDRS_5 * 8);
	memcpy(in->data, fd + 2 * FS_SECTOR, FS_FD_SMALL_5);
	memset(in->data + FS_FD_SMALL_5, 0, sizeof(in->data) - FS_FD_SMALL_5);
}

static int wrong(const char **why, const char *words)
{
	if (why)
		*why = words;
	return -EUCLEAN;
}

int vmfs_inode_parse(const struct vmfs_geometry *g, const void *bytes, uint64_t vol,
		     struct vmfs_inode *in, const char **why)
{
	const uint8_t *fd = bytes, *m = fd + g->md_align;
	uint32_t type = le32_load(m + FS_FD_TYPE);

	if (le32_load(fd + FS_L_TYPE) != FS_LOCK_FD)
		return wrong(why, "it has no descriptor's lock");
	if (le64_load(fd + FS_L_SELF) != vol)
		return wrong(why, "its lock says that it belongs elsewhere");
	in->addr = le32_load(m + FS_FD_ADDR);
	if ((in->addr & 0x3f) != VMFS_ADDR_FD)
		return wrong(why, "its address is none of a descriptor");
	if (type < VMFS_DIR || type > VMFS_RDM)
		return wrong(why, "it is of no known type");
	if (g->version == 6 && le32_load(m + FS_FD_SIGNATURE) != FS_FDMD)
		return wrong(why, "its signature is missing");
	in->vol = vol;
	in->type = type;
	in->free_bit = false;
	in->token = le64_load(fd + FS_L_TOKEN);
	parse_fields(g, m, in);
	parse_addresses(g, fd, in);
	return 0;
}

int vmfs_inode_read(struct vmfs *v, uint32_t addr, struct vmfs_inode *in, struct error *err)
{
	uint8_t bytes[2 * 4096];
	struct vmfs_addr a;
	const char *why;
	uint64_t vol;
	int r = fd_locate(v, addr, &vol);

	if (r < 0)
		return err_set(err, -r, "there is no place for the descriptor %#x", addr);
	r = volume_read(v, bytes, v->plan.geo.fd_size, vol);
	if (r < 0)
		return err_errno(err, -r, "cannot read the descriptor %#x", addr);
	if (vmfs_inode_parse(&v->plan.geo, bytes, vol, in, &why) < 0)
		return err_set(err, EUCLEAN, "the descriptor %#x is not readable: %s", addr, why);
	if (in->addr != addr)
		return err_set(err, EUCLEAN, "in the place of descriptor %#x is that of %#x", addr,
			       in->addr);
	if (!vmfs_addr_parse(&v->plan.geo, addr, &a))
		in->free_bit = vmfs_addr_used(v, &a) == 0;
	return 0;
}
