/* machine/bios_area.c - see bios_area.h. */
#include "machine/bios_area.h"

#include "base/bytes.h"
#include "machine/memmap.h"
#include "mem/mem.h"

#include <assert.h>

// clang-format off
enum {
	BDA_SIZE = 0x100,
	BDA_COM = 0x00,		/* four words */
	BDA_EBDA = 0x0E,	/* segment of the extended area */
	BDA_EQUIPMENT = 0x10,
	BDA_LOW_MEMORY = 0x13,	/* KiB, without the extended area */
	BDA_VIDEO_MODE = 0x49,
	BDA_COLUMNS = 0x4A,
	BDA_CRTC_PORT = 0x63,
	BDA_LAST_ROW = 0x84,
	BDA_KEYBOARD_FLAGS = 0x96,
};
enum { EQUIPMENT_FPU = 1 << 1, EQUIPMENT_COLOUR_80 = 2 << 4, EQUIPMENT_NR_COM = 9 };
enum { NR_VECTORS = 256, VECTOR_SEGMENT = 0xF000, VECTOR_OFFSET = 0xFF53 };

/* F000:FF53, where compatible firmware keeps its handler of unused interrupts.  CF is how most
 * services say "not supported"; ZF is how the keyboard's says that no key was pressed. */
static const uint8_t refuse_code[] = {
	0x55,			/* push bp */
	0x89, 0xE5,		/* mov bp, sp */
	0x80, 0x4E, 0x06, 0x41,	/* or byte [bp+6], CF | ZF */
	0x5D,			/* pop bp */
	0xCF,			/* iret */
};

/* FFFF:0000 */
static const uint8_t reset_code[] = {
	0xBA, 0xF9, 0x0C,	/* mov dx, PORT_RESET */
	0xB0, 0x06,		/* mov al, 6 */
	0xEE,			/* out dx, al */
	0xF4,			/* hlt */
	0xEB, 0xFD,		/* jmp to the hlt */
};
// clang-format on

#define RESET_ENTRY 0xFFFF0ull

static uint16_t bda_equipment(const struct bios_area_config *cfg)
{
	uint16_t nr = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(cfg->com); i++)
		nr += cfg->com[i] != 0;
	return (uint16_t)(EQUIPMENT_FPU | EQUIPMENT_COLOUR_80 | nr << EQUIPMENT_NR_COM);
}

static void bda_fill(uint8_t p[BDA_SIZE], const struct bios_area_config *cfg)
{
	for (unsigned i = 0; i < ARRAY_SIZE(cfg->com); i++)
		le16_store(p + BDA_COM + 2 * i, cfg->com[i]);
	le16_store(p + BDA_EBDA, MEMMAP_EBDA >> 4);
	le16_store(p + BDA_EQUIPMENT, bda_equipment(cfg));
	le16_store(p + BDA_LOW_MEMORY, MEMMAP_EBDA / KiB);
	p[BDA_VIDEO_MODE] = 3;
	le16_store(p + BDA_COLUMNS, 80);
	le16_store(p + BDA_CRTC_PORT, 0x3D4);
	p[BDA_LAST_ROW] = 24;
	p[BDA_KEYBOARD_FLAGS] = cfg->ps2 ? 0x10 : 0; /* has 101 keys */
}

static void vectors_fill(uint8_t p[NR_VECTORS * 4])
{
	for (unsigned i = 0; i < NR_VECTORS; i++) {
		le16_store(p + 4 * i, VECTOR_OFFSET);
		le16_store(p + 4 * i + 2, VECTOR_SEGMENT);
	}
}

static void put(struct mem *mem, gpa_t gpa, const void *p, size_t len)
{
	int r = mem_write(mem, gpa, p, len);

	assert(r == 0);
}

void bios_area_write(struct mem *mem, const struct bios_area_config *cfg)
{
	const uint8_t ebda_kib = (MEMMAP_VGA - MEMMAP_EBDA) / KiB;
	uint8_t bda[BDA_SIZE] = {0}, vectors[NR_VECTORS * 4];

	vectors_fill(vectors);
	bda_fill(bda, cfg);
	put(mem, 0, vectors, sizeof(vectors));
	put(mem, MEMMAP_BDA, bda, sizeof(bda));
	put(mem, MEMMAP_EBDA, &ebda_kib, 1);
	put(mem, VECTOR_SEGMENT * 16 + VECTOR_OFFSET, refuse_code, sizeof(refuse_code));
	put(mem, RESET_ENTRY, reset_code, sizeof(reset_code));
}
