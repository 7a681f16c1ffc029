/* block/formats.c - every image format there is, in the order they are tried. */
#include "block/format.h"

const struct blk_format *const blk_formats[] = {
	&blk_qcow2, &blk_vdi,   &blk_vhd,   &blk_vhdx, &blk_qed, &blk_parallels,
	&blk_dmg,   &blk_cloop, &blk_bochs, &blk_vmdk, &blk_raw, /* last: it takes anything */
	NULL,
};
