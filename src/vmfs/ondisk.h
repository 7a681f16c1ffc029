/* vmfs/ondisk.h - the on-disk structures of VMFS3, VMFS5, VMFS6 and VMFS-L, each stated once.
 *
 * Offsets into structures, as enums; values are loaded with the accessors of base/bytes.h.  All
 * integers are little-endian, nothing is aligned.  Used by vmfs/, by recovery and by the test
 * writer of volumes; nothing else.  No state.  What is known and how: docs/formats/vmfs.md. */
#pragma once

#include "base/types.h"

/* --- the device --------------------------------------------------------------------------------
 *
 *   0x0000000  reserved
 *   0x0100000  LVM device header                      H = 512 bytes, LVM6: its mdAlignment
 *   + H        volume table                           entries of 512 bytes
 *   0x0180000 - 32*256 + H   names of the volume's devices, on the first one
 *   0x0180000 + H            map 0: bitmap of the physical extents (PE), then their table
 *                            map 1, ...: 8192 PEs each, up to 8 follow one another
 *   0x1100000  data: offset 0 of the volume, where the extents are in order
 */
enum {
	LVM_HEADER = 0x100000,
	LVM_MAGIC = 0xC001D00D,
	LVM_PE_MAPS = 0x80000,       /* + H, from the header on */
	LVM_DEVICE_NAMES = 32 * 256, /* before that */
	LVM_VOLUME_SIZE = 512,
	LVM_MAX_VOLUMES = 512,
	LVM_PES_PER_MAP = 8192,
	LVM_PE_STRIDE = 128,
	LVM_BITMAP_MIN = LVM_PES_PER_MAP / 8,
	LVM_DATA = 0x1100000,
	LVM_MAPS_IN_ROW = 8, /* the rest is in a chain */
};
#define LVM_PE_SIZE (256 * MiB) /* what firstPE and lastPE count in */

enum lvm_header {
	LVM_H_MAGIC = 0x00,
	LVM_H_MAJOR = 0x04,
	LVM_H_MINOR = 0x08,
	LVM_H_DISK_ID = 0x0c, /* 78 bytes, enum scsi_disk_id */
	LVM_H_DISK_BLOCK = 0x5a,
	LVM_H_TOTAL_BYTES = 0x5e, /* u64 */
	LVM_H_VOLUMES = 0x66,
	LVM_H_PES = 0x6a, /* entries of the PE table */
	LVM_H_LAST_PE = 0x6e,
	LVM_H_GENERATION = 0x72,  /* u64 */
	LVM_H_DATA_OFFSET = 0x7a, /* u64 */
	LVM_H_UUID = 0x82,
	LVM_H_INIT_TIME = 0x92, /* u64, us */
	LVM_H_MOD_TIME = 0x9a,  /* u64, us */
	LVM_H_LOCKED_BY = 0xa2,
	LVM_H_LOCKED_WHEN = 0xb2,
	LVM_H_PE_MAPS = 0xbe,  /* 0: 1 */
	LVM_H_EXT_META = 0xc2, /* u64: enum lvm_ext_meta, when there are more than 8 maps */
	LVM_H_MD_ALIGN = 0xca, /* LVM6 */
	LVM_H_PES_256M = 0xce, /* LVM6: PEs in units of 256 MiB */
	LVM_H_FLAGS = 0xd2,    /* 1: VMFS-L */
	LVM_H_SIZE = 0xd6,
};

enum lvm_ext_meta {
	LVM_X_MAGIC = 0x00,
	LVM_X_PE_MAPS = 0x04,
	LVM_X_DATA_OFFSET = 0x08, /* u64 */
	LVM_X_NEXT = 0x10,        /* u64 */
	LVM_X_SIZE = 0x18,
};

enum scsi_disk_id {
	SCSI_ID_TYPE = 0,
	SCSI_ID_LEN = 1,
	SCSI_ID_LUN = 2, /* u16 */
	SCSI_ID_DEVICE_TYPE = 4,
	SCSI_ID_LEVEL = 5,
	SCSI_ID_VENDOR = 6,
	SCSI_ID_MODEL = 14,
	SCSI_ID_REVISION = 30,
	SCSI_ID_ID = 34, /* 44 bytes */
	SCSI_ID_SIZE = 78,
};

enum lvm_volume {
	LVM_V_SIZE = 0x00, /* u64 */
	LVM_V_GENERATION = 0x08,
	LVM_V_STATE = 0x10, /* enum lvm_volume_state */
	LVM_V_NAME = 0x14,  /* 64 bytes */
	LVM_V_UUID = 0x54,
	LVM_V_SNAP_ID = 0x64,
	LVM_V_CTIME = 0x68, /* u64, us */
	LVM_V_ID = 0x70,
	LVM_V_PES = 0x74,
	LVM_V_FIRST_PE = 0x78, /* u64 */
	LVM_V_LAST_PE = 0x80,  /* u64 */
	LVM_V_MTIME = 0x88,
	LVM_V_DEVICES = 0x90,
};
enum { LVM_VOLUME_NAME = 64 };
enum lvm_volume_state { LVM_NORMAL = 1, LVM_RESIG_PENDING = 2, LVM_RESIG_DONE = 3 };

enum lvm_pe {
	LVM_PE_USED = 0x00, /* u8 */
	LVM_PE_ID = 0x01,
	LVM_PE_VOLUME = 0x05,
	LVM_PE_DEVICE_OFFSET = 0x09, /* u64 */
	LVM_PE_VOLUME_OFFSET = 0x11, /* u64 */
	LVM_PE_LENGTH = 0x19,        /* u64 */
	LVM_PE_VERSION = 0x21,
	LVM_PE_BYTES = 0x25,
};

/* --- the volume --------------------------------------------------------------------------------
 *
 *   0x000000  reserved
 *   0x200000  superblock
 *   0x300000  heartbeats: VMFS3 and 5 2048 of 512 bytes, VMFS6 1024 of mdAlignment bytes
 *   then      .fdc.sf, from the next file block on (VMFS6: the next MiB)
 */
enum {
	FS_SUPERBLOCK = 0x200000,
	FS_HEARTBEATS = 0x300000,
	FS_NR_HEARTBEATS_5 = 2048,
	FS_NR_HEARTBEATS_6 = 1024,
	FS_MAGIC = 0x2FABF15E,
	FS_MAGIC_LITE = 0x2FABF15F,
	FS_MAJOR_VMFS5 = 14,
	FS_MAJOR_VMFS6 = 24,
	FS_SECTOR = 512,
};

enum fs_superblock {
	FS_S_MAGIC = 0x00,
	FS_S_MAJOR = 0x04,
	FS_S_MINOR = 0x08, /* u8 */
	FS_S_UUID = 0x09,
	FS_S_CONFIG = 0x19,
	FS_S_LABEL = 0x1d, /* 128 bytes */
	FS_S_DISK_BLOCK = 0x9d,
	FS_S_FILE_BLOCK = 0xa1, /* u64 */
	FS_S_CTIME = 0xa9,
	FS_S_SNAP_ID = 0xad,
	FS_S_VOLUME_UUID = 0xb1, /* of the logical volume, then its snapshot id */
	FS_S_FDC_GROUP_OFFSET = 0xd1,
	FS_S_FDC_PER_GROUP = 0xd5,
	FS_S_SUB_BLOCK = 0xd9,
	FS_S_MAX_JOURNAL_SLOTS = 0xdd,
	FS_S_PB2_VOL = 0xe1, /* u64: where the descriptor of .pb2.sf is */
	FS_S_PB2_FD = 0xe9,
	FS_S_HOST_UUID = 0xed,
	FS_S_GENERATION = 0xfd, /* u64 */
	FS_S_SDD_VOL = 0x105,   /* u64 */
	FS_S_SDD_FD = 0x10d,
	FS_S_CHECKSUM_TYPE = 0x111, /* u8 */
	FS_S_CHECKSUM_GEN = 0x118,  /* u64 */
	FS_S_CHECKSUM = 0x120,      /* 2 u64 */
	FS_S_PHYS_DISK_BLOCK = 0x130,
	FS_S_MD_ALIGN = 0x134,
	FS_S_LFB_SHIFT = 0x138, /* u16 */
	FS_S_PTR_SHIFT = 0x13e, /* u16 */
	FS_S_SFB_BITS = 0x140,  /* u16 */
	FS_S_TBZ = 0x144,
	FS_S_JOURNAL_BLOCK = 0x148,
	FS_S_LEASE_MS = 0x14c,
	FS_S_RECLAIM_MS = 0x150,
	FS_S_LOCAL_STAMP = 0x154, /* u64 */
	FS_S_SIZE = 0x170,
};
enum { FS_CONFIG_DENSE = 1 << 2 };

enum fs_heartbeat {
	FS_HB_STATE = 0x00,
	FS_HB_SELF = 0x04,       /* u64 */
	FS_HB_GENERATION = 0x0c, /* u64 */
	FS_HB_STAMP = 0x14,      /* u64, us of the host's uptime */
	FS_HB_OWNER = 0x1c,
	FS_HB_JOURNAL = 0x2c, /* block address */
	FS_HB_MAJOR = 0x30,
	FS_HB_MINOR = 0x34, /* u8 */
	FS_HB_LOCK_IMPL = 0x35,
	FS_HB_IP = 0x36,          /* 46 characters */
	FS_HB_JOURNAL_VOL = 0x64, /* u64 */
	FS_HB_SIZE = 0xa4,
};
enum { FS_HB_FREE = 0xABCDEF01, FS_HB_USED = 0xABCDEF02, FS_HB_IP_LEN = 46 };

/* The lock is the first block of every descriptor and of every cluster's header. */
enum fs_lock {
	FS_L_TYPE = 0x00,
	FS_L_SELF = 0x04,      /* u64: its own volume offset */
	FS_L_HEARTBEAT = 0x0c, /* u64: the holder's */
	FS_L_HB_GENERATION = 0x14,
	FS_L_TOKEN = 0x1c, /* u64 */
	FS_L_MODE = 0x24,
	FS_L_OWNER = 0x28,
	FS_L_MTIME = 0x38, /* u64 */
	FS_L_HOLDERS = 0x40,
	FS_L_SIZE = 0x178,
};
enum {
	FS_LOCK_FD = 0x10C00001,
	FS_LOCK_FB = 0x10C00002, /* VMFS6: small file blocks */
	FS_LOCK_SB = 0x10C00003,
	FS_LOCK_PB = 0x10C00004,
	FS_LOCK_FDC = 0x10C00005,
	FS_LOCK_PB2 = 0x10C00006,
	FS_LOCK_JB = 0x10C00007,
	FS_LOCK_LFB = 0x10C00008,
};

/* --- resource files ----------------------------------------------------------------------------
 *
 *   header | ... clusterGroupOffset: group 0 | group 1 | ...
 *   group = [clustersPerGroup x (lock block, meta block)] [clusters x resources of resourceSize]
 *
 * .fbb.sf of VMFS6 has two headers: large file blocks, and at 0x1000 the small ones, whose cluster
 * headers are the "resources" of the large ones:
 *
 *   group = [8 headers: LFB clusters] [128 headers: one SFB cluster for each LFB]
 */
enum fs_resource {
	FS_R_PER_CLUSTER = 0x00,
	FS_R_PER_GROUP = 0x04,
	FS_R_GROUP_OFFSET = 0x08,
	FS_R_SIZE = 0x0c,
	FS_R_GROUP_SIZE = 0x10,
	FS_R_RESOURCES_LO = 0x14,
	FS_R_GROUPS = 0x18,
	FS_R_RESOURCES_HI = 0x1c,
	/* VMFS6 only */
	FS_R_SIGNATURE = 0x20,
	FS_R_VERSION = 0x24,
	FS_R_FLAGS = 0x28,
	FS_R_AFFINITY_CLUSTER = 0x2c,  /* u16 */
	FS_R_AFFINITY_RESOURCE = 0x2e, /* u16 */
	FS_R_BITS = 0x30,
	FS_R_CHILD = 0x34, /* where the child's header is */
	FS_R_PARENT_PER_CLUSTER = 0x38,
	FS_R_PARENT_PER_GROUP = 0x3c,
	FS_R_PARENT_GROUP_SIZE = 0x40,
	FS_R_HEADER_SIZE = 0x60,
};
enum { FS_RFMD = 0x72666D64, FS_R_IS_CHILD = 2, FS_R_CHILD_DEFAULT = 0x1000 };

/* Meta block of a cluster's header.  A bit that is set is free, the lowest bit first. */
enum fs_cluster_5 {
	FS_C5_NUMBER = 0x00,
	FS_C5_TOTAL = 0x04,
	FS_C5_FREE = 0x08,
	FS_C5_NEXT = 0x0c,
	FS_C5_BITMAP = 0x10,
};
enum fs_cluster_6 {
	FS_C6_SIGNATURE = 0x10,
	FS_C6_PRIORITY = 0x14,
	FS_C6_NUMBER = 0x18,   /* u64 */
	FS_C6_TOTAL = 0x20,    /* u16 */
	FS_C6_FREE = 0x22,     /* u16 */
	FS_C6_AFFINITY = 0x26, /* u16: pairs in the table of SFB clusters */
	FS_C6_NEXT = 0x7c,
	FS_C6_BITMAP = 0x80,
	FS_C6_SFB_OWNERS = 0x948, /* {FD address u32, blocks u32} */
	FS_C6_FD_OWNERS = 0x8e0,  /* clusters of 256: an FD address for each resource */
	FS_C6_PB2_OWNERS = 0x2e0, /* clusters of 32 */
};
enum { FS_RCMD = 0x72636D64, FS_LFB_BITS = 3, FS_LFB_SPLIT = 4, FS_SFB_BITS = 2 };

/* --- descriptors -------------------------------------------------------------------------------
 *
 *   VMFS3, 5:  lock 512 | meta 512 | 256 addresses of 32 bits, or resident data      = 2048
 *   VMFS6:     lock 4096 | meta 512 | resident data 3584                             = 8192
 *                        | ...        the last 2560: 320 addresses of 64 bits |
 */
enum fs_fd {
	FS_FD_ADDR = 0x00,
	FS_FD_GENERATION = 0x04,
	FS_FD_LINKS = 0x08,
	FS_FD_TYPE = 0x0c,
	FS_FD_FLAGS = 0x10,
	FS_FD_LENGTH = 0x14,     /* u64 */
	FS_FD_BLOCK_SIZE = 0x1c, /* u64 */
	FS_FD_BLOCKS = 0x24,     /* u64: without pointer blocks */
	FS_FD_MTIME = 0x2c,
	FS_FD_CTIME = 0x30,
	FS_FD_ATIME = 0x34,
	FS_FD_UID = 0x38,
	FS_FD_GID = 0x3c,
	FS_FD_MODE = 0x40,
	FS_FD_ZLA = 0x44,
	FS_FD_TBZ = 0x48,
	FS_FD_COW = 0x4c,
	FS_FD_POINTER_BLOCKS = 0x5c,
	FS_FD_SIGNATURE = 0x64, /* VMFS6 */
	FS_FD_AFFINITY = 0x68,
	FS_FD_TBZ_SHIFT = 0x6c,
	FS_FD_PARENT = 0x70, /* VMFS6 */
	FS_FD_LAST_SFB = 0x74,
	FS_FD_BLOCK_SHIFT = 0x89, /* u8; 0 on VMFS3 */
	FS_FD_LFBS = 0x8c,
	FS_FD_META_SIZE = 0x200,
};
enum {
	FS_FDMD = 0x66646D64,
	FS_FD_SIZE_5 = 2048,
	FS_FD_ADDRS_5 = 256,
	FS_FD_ADDRS_6 = 320,
	FS_FD_SMALL_5 = 1024, /* resident data */
	FS_FD_SMALL_6 = 3584,
};

enum fs_zla {
	FS_ZLA_FB = 1,
	FS_ZLA_SB = 2,
	FS_ZLA_PB = 3,
	FS_ZLA_PB2 = 5,
	FS_ZLA_DOUBLE = 0x10d0,
	FS_ZLA_RESIDENT = 0x10d1,
};

/* Descriptors of the system files. */
enum {
	FS_FD_ROOT = 0x4,
	FS_FD_FBB = 0x400004,
	FS_FD_FDC = 0x800004,
	FS_FD_PBC = 0xc00004,
	FS_FD_SBC = 0x1000004,
	FS_FD_VH = 0x1400004,
	FS_FD_PB2 = 0x1800004,
	FS_FD_SDD = 0x1c00004,
	FS_FD_JBC = 0x2000004,
	FS_FD_UNMAP = 0x2400004,
	FS_FD_DFD = 0x2800004,
};

/* --- directories -------------------------------------------------------------------------------
 *
 * VMFS3, 5: records, one after another.  VMFS6: a header, then blocks of mdAlignment bytes that are
 * counted from 0 at 0x10000:
 *
 *   0x00000  header 0x5f8 | hash table: 16001 slots
 *   0x10000  block 0 (alloc map) | block 1 (entries) | ...
 */
enum fs_dirent_5 {
	FS_D5_TYPE = 0x00,
	FS_D5_ADDR = 0x04,
	FS_D5_GENERATION = 0x08,
	FS_D5_NAME = 0x0c,
	FS_D5_SIZE = 140,
};
enum fs_dir_header {
	FS_DH_VERSION = 0x000,
	FS_DH_ENTRIES = 0x004, /* with . and .. */
	FS_DH_ALLOCATED = 0x008,
	FS_DH_MAPS = 0x00c,
	FS_DH_MAP_BLOCKS = 0x010, /* u32[128] */
	FS_DH_CHECKSUM = 0x3a8,   /* u64 */
	FS_DH_SELF = 0x3b8,       /* enum fs_dirent_6 */
	FS_DH_PARENT = 0x4d8,
	FS_DH_HASH = 0x5f8, /* u32[16001] */
	FS_DH_SIZE = 0x10000,
};
enum {
	FS_DIR_VERSION = 0x00F50001,
	FS_DIR_VERSION_DEBUG = 0x00FDC001,
	FS_DIR_MAX_MAPS = 128,
	FS_DIR_SLOTS = 16001,
	FS_DIR_ROOT_SLOTS = FS_DIR_SLOTS - 28, /* the rest is for the system files */
};
enum fs_dir_block {
	FS_DB_VERSION = 0x00, /* u16 */
	FS_DB_TYPE = 0x02,    /* u16: enum fs_dir_block_type */
	FS_DB_SLOTS = 0x04,   /* u16 */
	FS_DB_FREE = 0x06,    /* u16 */
	FS_DB_BITMAP = 0x08,  /* 56 bytes; set: free */
	FS_DB_DATA = 0x40,
};
enum fs_dir_block_type { FS_DIR_DIRENTS = 1, FS_DIR_LINKS = 2, FS_DIR_MAP = 3 };
/* Four bits for each block in an alloc map, the high nibble first: the type and */
enum { FS_MAP_TYPE = 3, FS_MAP_HAS_FREE = 4, FS_MAP_NEVER = 8 };

enum fs_dirent_6 {
	FS_D6_TYPE = 0x00,
	FS_D6_ADDR = 0x04,
	FS_D6_GENERATION = 0x08,
	FS_D6_HASH = 0x0c, /* its low half */
	FS_D6_SELF = 0x10, /* u64: where in the directory */
	FS_D6_NAME = 0x18, /* 256 bytes */
	FS_D6_SIZE = 0x120,
};
enum { FS_NAME_5 = 128, FS_NAME_6 = 256 };

/* A slot of the hash table: type (bits 0, 1: 1 an entry, 2 a link group), block (2..23), slot. */
enum { FS_SLOT_DIRENT = 1, FS_SLOT_LINK = 2 };

enum fs_link_group {
	FS_LG_INDEX = 0x00, /* u16 */
	FS_LG_TOTAL = 0x02, /* u8 */
	FS_LG_FREE = 0x03,  /* u8 */
	FS_LG_NEXT_FREE = 0x04,
	FS_LG_LINKS = 0x06, /* 12 of {slot u32, hash u16} */
	FS_LG_NEXT = 0x4e,  /* u32: the next group */
	FS_LG_SIZE = 0x54,
	FS_LG_NR = 12,
	FS_LG_LINK_SIZE = 6,
};

/* --- journals ----------------------------------------------------------------------------------
 */
enum { FS_JOURNAL_MAGIC = 0x46534A36, FS_JOURNAL_MAGIC2 = 0x4a364a48 /* at 0x20 */ };
