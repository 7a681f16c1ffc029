/* layout.h - the on-disk format as the writer of test volumes knows it.
 *
 * For tests/vmfs/mkfs only.  The reader under src/vmfs has its own statement of the same format:
 * two statements written apart find each other's mistakes, so neither includes the other.
 * Everything is little-endian and packed; fields are offsets (bytes) into a structure, put with
 * put32() and friends.  "Volume offset" is after LVM mapping, "device offset" counts from the start
 * of the partition.  Marked M: measured on volumes that ESXi made; the rest is what independent
 * readers of the format (vmfs-tools, dissect.vmfs) agree on. */
#pragma once

#include <stdint.h>
#include <string.h>

#define KIB 1024ull
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

// clang-format off
enum { /* LVM: device header at device offset 1 MiB */
	LVM_BASE = 0x100000, LVM_MAGIC = (int)0xC001D00D, LVM_MINOR = 0x15,
	LVM_OFF_MAGIC = 0x00, LVM_OFF_MAJOR = 0x04, LVM_OFF_MINOR = 0x08,
	LVM_OFF_SCSI = 0x0C, LVM_SCSI_LEN = 0x01, LVM_SCSI_ID = 0x22, LVM_SCSI_SIZE = 78,
	LVM_OFF_SECTOR = 0x5A, LVM_OFF_TOTAL = 0x5E, LVM_OFF_VOLUMES = 0x66, LVM_OFF_PES = 0x6A,
	LVM_OFF_LASTPE = 0x6E, LVM_OFF_GEN = 0x72, LVM_OFF_DATA = 0x7A, LVM_OFF_UUID = 0x82,
	LVM_OFF_INIT = 0x92, LVM_OFF_MTIME = 0x9A, LVM_OFF_PEMAPS = 0xBE, LVM_OFF_MDALIGN = 0xCA,
	LVM_OFF_PES6 = 0xCE, LVM_OFF_FLAGS = 0xD2, LVM_FLAG_LOCAL = 1,
	LVM_DATA = 0x1100000, LVM_PE_SIZE = 0x10000000,
	LVM5_BITMAP = 0x80200, LVM6_BITMAP = 0x81000, /* from the header, M */
	LVM5_BITMAP_SIZE = 1024, LVM6_BITMAP_SIZE = 4096,
	LVM_SD_TABLE_SIZE = 32 * 256, LVM_PE_STRIDE = 128, LVM_PES_PER_TABLE = 8192,
};
enum { /* LVM: volume record, directly after the header */
	LV_SIZE = 0x00, LV_GEN = 0x08, LV_STATE = 0x10, LV_NAME = 0x14, LV_UUID = 0x54,
	LV_SNAP = 0x64, LV_CTIME = 0x68, LV_ID = 0x70, LV_PES = 0x74, LV_FIRST = 0x78,
	LV_LAST = 0x80, LV_MTIME = 0x88, LV_DEVS = 0x90, LV_ONE6 = 0x110 /* 1 on VMFS6, M */,
};
enum { /* LVM: physical extent entry */
	PE_USED = 0, PE_ID = 1, PE_VOLUME = 5, PE_POFF = 9, PE_LOFF = 0x11, PE_LEN = 0x19,
	PE_VERSION = 0x21,
};
enum { /* superblock at volume offset 2 MiB */
	SB_BASE = 0x200000, SB_SIZE = 512, SB_MAGIC = 0x2FABF15E, SB_MAGIC_LOCAL = 0x2FABF15F,
	SB_OFF_MAGIC = 0x00, SB_OFF_MAJOR = 0x04, SB_OFF_MINOR = 0x08, SB_OFF_UUID = 0x09,
	SB_OFF_CONFIG = 0x19, SB_CONFIG_BASE = 2, SB_CONFIG_DENSE = 4, SB_OFF_LABEL = 0x1D,
	SB_OFF_SECTOR = 0x9D, SB_OFF_BLOCK = 0xA1, SB_OFF_CTIME = 0xA9, SB_OFF_SNAP = 0xAD,
	SB_OFF_LVUUID = 0xB1, SB_OFF_LVSNAP = 0xC1, SB_OFF_FDC_OFF = 0xD1, SB_OFF_FDC_CPG = 0xD5,
	SB_OFF_SUBBLOCK = 0xD9, SB_OFF_TXN = 0xDD, SB_OFF_PB2_VOL = 0xE1, SB_OFF_PB2_FD = 0xE9,
	SB_OFF_HOST = 0xED, SB_OFF_GEN = 0xFD,
	SB_OFF_SDD_VOL = 0x105, SB_OFF_SDD_FD = 0x10D,
	SB_OFF_UNMAP_PRIO = 0x112, SB_OFF_PHYS = 0x130, SB_OFF_MDALIGN = 0x134, SB_OFF_SFBLFB = 0x138,
	SB_OFF_PTRSHIFT = 0x13E, SB_OFF_SFBBITS = 0x140, SB_OFF_TBZ = 0x144, SB_OFF_JBLOCK = 0x148,
	SB_OFF_LEASE = 0x14C, SB_OFF_RECLAIM = 0x150,
};
enum { /* heartbeats at volume offset 3 MiB */
	HB_BASE = 0x300000, HB_FREE = (int)0xABCDEF01, HB_LIVE = (int)0xABCDEF02,
	HB_OFF_MAGIC = 0x00, HB_OFF_SELF = 0x04, HB_OFF_GEN = 0x0C, HB_OFF_UPTIME = 0x14,
	HB_OFF_HOST = 0x1C, HB_OFF_JADDR = 0x2C, HB_OFF_MAJOR = 0x30, HB_OFF_MINOR = 0x34,
	HB_OFF_IMPL = 0x35, HB_OFF_IP = 0x36, HB_OFF_JVOL = 0x64,
};
enum { /* lock block: opens every file descriptor and cluster header */
	LK_TYPE = 0x00, LK_SELF = 0x04, LK_HB = 0x0C, LK_HBGEN = 0x14, LK_TOKEN = 0x1C, LK_MTIME = 0x38,
	LK_FD = 0x10C00001, LK_FB = 0x10C00002, LK_SB = 0x10C00003, LK_PB = 0x10C00004,
	LK_FDC = 0x10C00005, LK_PB2 = 0x10C00006, LK_JB = 0x10C00007, LK_LFB = 0x10C00008,
};
enum { /* resource file header */
	RF_RPC = 0x00, RF_CPG = 0x04, RF_CGOFF = 0x08, RF_RSIZE = 0x0C, RF_CGSIZE = 0x10,
	RF_NUM = 0x14, RF_GROUPS = 0x18, RF_NUMHI = 0x1C, RF_SIG = 0x20, RF_VERSION = 0x24,
	RF_FLAGS = 0x28, RF_AFF_CLUSTER = 0x2C, RF_AFF_RES = 0x2E, RF_BITS = 0x30, RF_CHILD = 0x34,
	RF_PARENT_RPC = 0x38, RF_PARENT_CPG = 0x3C, RF_PARENT_CGSIZE = 0x40, RF_CONVERTED = 0x54,
	RF_SIGNATURE = 0x72666D64, RF_CHILD_OFFSET = 0x1000, RF_GROUP_OFFSET = 0x10000,
};
enum { /* cluster header, VMFS3/5: second half */
	CM5_NUM = 0x00, CM5_TOTAL = 0x04, CM5_FREE = 0x08, CM5_NEXT = 0x0C, CM5_BITMAP = 0x10,
	CM5_TXN = 0x50 /* counts changes, M */,
};
enum { /* cluster header, VMFS6: second half, M */
	CM6_SIG = 0x10, CM6_SIGNATURE = 0x72636D64, CM6_NUM = 0x18, CM6_TOTAL = 0x20, CM6_FREE = 0x22,
	CM6_AFFINITIES = 0x26, CM6_SLOTS = 0x2A, CM6_ONE = 0x30, CM6_TXN = 0x58, CM6_MAC = 0x5C,
	CM6_TIME = 0x62, CM6_TXN2 = 0x68, CM6_NEXT = 0x7C, CM6_BITMAP = 0x80, CM6_PERRES = 0xE0,
	CM6_AFF_256 = 0x8E0, CM6_AFF_32 = 0x2E0, CM6_AFF_SFB = 0x940,
	CM6_AFF_SFB_MAX = 216, LFB_TO_CHILD = 4,
};
enum { /* file descriptor: meta block */
	FD_ADDR = 0x00, FD_GEN = 0x04, FD_LINKS = 0x08, FD_TYPE = 0x0C, FD_FLAGS = 0x10, FD_LENGTH = 0x14,
	FD_BLOCKSIZE = 0x1C, FD_BLOCKS = 0x24, FD_MTIME = 0x2C, FD_CTIME = 0x30, FD_ATIME = 0x34,
	FD_UID = 0x38, FD_GID = 0x3C, FD_MODE = 0x40, FD_ZLA = 0x44, FD_TBZ = 0x48, FD_COW = 0x4C,
	FD_NEW = 0x50, FD_PBS = 0x5C, FD_SIG = 0x64, FD_SIGNATURE = 0x66646D64, FD_AFFINITY = 0x68,
	FD_TBZSHIFT = 0x6C, FD_PARENT = 0x70, FD_LASTSFB = 0x74, FD_SHIFT = 0x89, FD_LFBS = 0x8C,
	FD5_META = 0x200, FD5_DATA = 0x400, FD5_SIZE = 0x800, FD5_ADDRS = 256, FD5_RESIDENT = 1024,
	FD6_META = 0x1000, FD6_DATA = 0x1200, FD6_ARRAY = 0x1600, FD6_SIZE = 0x2000, FD6_ADDRS = 320,
	FD6_RESIDENT = 3584,
};
enum { TYPE_DIR = 2, TYPE_FILE = 3, TYPE_LINK = 4, TYPE_SYS = 5, TYPE_RDM = 6 };
enum { ZLA_FB = 1, ZLA_SB = 2, ZLA_PB = 3, ZLA_PB2 = 5, ZLA_DOUBLE = 0x10D0, ZLA_RESIDENT = 0x10D1 };
enum { ADDR_FB = 1, ADDR_SB = 2, ADDR_PB = 3, ADDR_FD = 4, ADDR_PB2 = 5, ADDR_JB = 6, ADDR_LFB = 7 };
enum { FB5_COW = 0x10, FB5_TBZ = 0x20, FB6_COW = 0x20, FB6_TBZ_SHIFT = 7 };
enum { /* directories */
	DE5_TYPE = 0, DE5_FD = 4, DE5_GEN = 8, DE5_NAME = 12, DE5_NAME_SIZE = 128, DE5_SIZE = 140,
	DE6_TYPE = 0, DE6_FD = 4, DE6_GEN = 8, DE6_HASH = 0x0C, DE6_SELF = 0x10, DE6_NAME = 0x18,
	DE6_SIZE = 0x120, DIR6_VERSION = 0x00F50001, DIR6_ENTRIES = 0x4, DIR6_ALLOCATED = 0x8,
	DIR6_MAPS = 0xC, DIR6_MAP = 0x10, DIR6_MAP_MAX = 128, DIR6_SELF = 0x3B8, DIR6_PARENT = 0x4D8,
	DIR6_HASH = 0x5F8, DIR6_HASHES = 16001, DIR6_ROOT_HASHES = 15973, DIR6_HEADER = 0x10000,
	DIR6_BLOCK = 0x1000, DB_VERSION = 0, DB_TYPE = 2, DB_SLOTS = 4, DB_FREE = 6, DB_BITMAP = 8,
	DB_HEADER = 64, DB_DIRENT = 1, DB_LINK = 2, DB_MAP = 3, DB_DIRENT_SLOTS = 14,
	DB_LINK_SLOTS = 48, LG_SIZE = 0x54, LG_INDEX = 0, LG_TOTAL = 2, LG_FREE = 3, LG_NEXTFREE = 4,
	LG_LINKS = 6, LG_LINK_SIZE = 6, LG_MAX = 12, LG_NEXT = 0x4E, MAP_FREE = 4, MAP_UNWRITTEN = 8,
	MAP_PER_BLOCK = 2 * (DIR6_BLOCK - DB_HEADER),
};
enum { /* journals, M: a VMFS5 record is this header and a redo image; VMFS6 heads are text */
	JR5_ONE = 0, JR5_TARGET = 0x10, JR5_LENGTH = 0x18, JR5_HEADER = 0x20,
	JB6_HEAD = 0x46534A36, JB6_HEAD2 = 0x4A364A48, JB6_TXN = 0x4A364F54,
};
// clang-format on

static inline void put16(void *at, uint64_t off, uint16_t v)
{
	memcpy((char *)at + off, &v, sizeof(v));
}

static inline void put32(void *at, uint64_t off, uint32_t v)
{
	memcpy((char *)at + off, &v, sizeof(v));
}

static inline void put64(void *at, uint64_t off, uint64_t v)
{
	memcpy((char *)at + off, &v, sizeof(v));
}

static inline uint32_t get32(const void *at, uint64_t off)
{
	uint32_t v;

	memcpy(&v, (const char *)at + off, sizeof(v));
	return v;
}

static inline uint64_t get64(const void *at, uint64_t off)
{
	uint64_t v;

	memcpy(&v, (const char *)at + off, sizeof(v));
	return v;
}
