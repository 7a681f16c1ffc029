/* The keyboard controller and its keyboard.
 *
 *	keyboard ──queue (set 2)──┐ translation to set 1
 *	controller replies ───────┴──> output buffer (port 60h) ──> IRQ 1
 *
 * The output buffer holds one byte.  The keyboard's next one moves in when it is empty and the
 * keyboard's clock is not disabled; a reply of the controller goes in at once.
 *
 * There is no auxiliary port: command byte bit 5 stays set, tests of the port fail, and what is
 * sent to a mouse times out. */
#include "devices/ps2/i8042.h"

#include "base/error.h"
#include "bus/bus.h"
#include "state/state.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

// clang-format off
enum {
	PORT_DATA = 0x60, PORT_COMMAND = 0x64, PORT_FAST = 0x92,

	ST_OBF = 1, ST_SYSTEM = 4, ST_COMMAND = 8, ST_UNLOCKED = 16, ST_AUX = 32, ST_TIMEOUT = 64,
	CB_IRQ = 1, CB_SYSTEM = 4, CB_NO_KBD = 16, CB_NO_AUX = 32, CB_XLATE = 64,
	OUT_NO_RESET = 1, OUT_A20 = 2, OUT_OBF = 16,
	FAST_RESET = 1, FAST_A20 = 2,

	CMD_READ_RAM = 0x20, CMD_WRITE_RAM = 0x60, CMD_AUX_DISABLE = 0xa7, CMD_AUX_ENABLE = 0xa8,
	CMD_AUX_TEST = 0xa9, CMD_SELF_TEST = 0xaa, CMD_KBD_TEST = 0xab, CMD_KBD_DISABLE = 0xad,
	CMD_KBD_ENABLE = 0xae, CMD_READ_INPUT = 0xc0, CMD_READ_OUTPUT = 0xd0,
	CMD_WRITE_OUTPUT = 0xd1, CMD_KBD_LOOP = 0xd2, CMD_AUX_LOOP = 0xd3, CMD_AUX_SEND = 0xd4,
	CMD_READ_TEST = 0xe0, CMD_PULSE = 0xf0,

	AUX_TEST_FAILED = 4, INPUT_UNLOCKED = 0x80, RAM_SIZE = 32,

	KBD_LEDS = 0xed, KBD_ECHO = 0xee, KBD_SCAN_SET = 0xf0, KBD_IDENTIFY = 0xf2,
	KBD_RATE = 0xf3, KBD_ENABLE = 0xf4, KBD_DISABLE = 0xf5, KBD_DEFAULTS = 0xf6,
	KBD_ALL_FIRST = 0xf7, KBD_ALL_LAST = 0xfa, KBD_ONE_FIRST = 0xfb, KBD_ONE_LAST = 0xfd,
	KBD_RESEND = 0xfe, KBD_RESET = 0xff,
	REPLY_ACK = 0xfa, REPLY_PASSED = 0xaa, REPLY_RESEND = 0xfe, REPLY_OVERRUN = 0,
	BREAK_PREFIX = 0xf0, EXTENDED_PREFIX = 0xe0,

	QUEUE_SIZE = 32, QUEUE_FOR_KEYS = 16, /* the rest is for replies */
};
// clang-format on

struct i8042 {
	struct i8042_config cfg;
	struct io_region *data_region, *command_region, *fast_region;

	pthread_mutex_t lock;   /* guards all below */
	uint8_t ram[RAM_SIZE];  /* [0] is the command byte */
	uint8_t output, status; /* output buffer; ST_OBF, _COMMAND, _AUX, _TIMEOUT */
	uint8_t pending_cmd;    /* a controller command that waits for its data byte; 0 = none */
	uint8_t out_port, fast;
	bool break_pending; /* translation: the next code was preceded by F0 */

	uint8_t queue[QUEUE_SIZE]; /* what the keyboard has to say */
	uint32_t head, nr;
	uint8_t kbd_cmd; /* a keyboard command that waits for its parameter; 0 = none */
	uint8_t leds, scan_set, last_sent;
	bool scanning;

	bool want_reset, a20_changed; /* to be acted on after the lock is dropped */
};

/* Set 2 to set 1 as the 8042 does it, for codes 00..7f (PS/2 reference, scan code table). */
// clang-format off
static const uint8_t xlate[128] = {
	0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
	0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
	0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
	0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
	0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
	0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
	0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
	0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
};
// clang-format on

/* ---- output buffer: lock held ---- */

static void update_irq(struct i8042 *k)
{
	irq_set(&k->cfg.irq, (k->status & ST_OBF) && !(k->status & ST_AUX) && (k->ram[0] & CB_IRQ));
}

static void output_put(struct i8042 *k, uint8_t byte, uint8_t flags)
{
	k->output = byte;
	k->status = (k->status & ~(ST_AUX | ST_TIMEOUT)) | ST_OBF | flags;
	update_irq(k);
}

/* A reply of the controller itself.  It overwrites a byte nobody has fetched, as on the real one
 * when software breaks the protocol. */
static void reply(struct i8042 *k, uint8_t byte)
{
	output_put(k, byte, 0);
}

/* True: *byte is to be shown to the host.  False: it was a prefix and is kept in mind. */
static bool translate(struct i8042 *k, uint8_t *byte)
{
	if (!(k->ram[0] & CB_XLATE))
		return true;
	if (*byte == BREAK_PREFIX) {
		k->break_pending = true;
		return false;
	}
	if (*byte < sizeof(xlate))
		*byte = xlate[*byte];
	else if (*byte == 0x83)
		*byte = 0x41;
	else if (*byte == 0x84)
		*byte = 0x54;
	if (k->break_pending && *byte != EXTENDED_PREFIX)
		*byte |= 0x80;
	k->break_pending = false;
	return true;
}

/* Let the keyboard's next byte in when the way is free. */
static void pump(struct i8042 *k)
{
	while (k->nr && !(k->status & ST_OBF) && !(k->ram[0] & CB_NO_KBD)) {
		uint8_t byte = k->queue[k->head];

		k->head = (k->head + 1) % QUEUE_SIZE;
		k->nr--;
		if (translate(k, &byte))
			output_put(k, byte, 0);
	}
}

/* ---- the keyboard: lock held ---- */

static void kbd_put(struct i8042 *k, uint8_t byte)
{
	if (k->nr == QUEUE_SIZE)
		return;
	k->queue[(k->head + k->nr++) % QUEUE_SIZE] = byte;
}

static void kbd_answer(struct i8042 *k, uint8_t byte)
{
	k->last_sent = byte;
	kbd_put(k, byte);
}

static void kbd_defaults(struct i8042 *k)
{
	k->scan_set = 2;
	k->nr = 0;
}

static void kbd_param(struct i8042 *k, uint8_t cmd, uint8_t value)
{
	switch (cmd) {
	case KBD_LEDS:
		k->leds = value & 7;
		break;
	case KBD_SCAN_SET:
		if (value > 3)
			return kbd_answer(k, REPLY_RESEND);
		if (value == 0) {
			kbd_answer(k, REPLY_ACK);
			return kbd_answer(k, k->scan_set);
		}
		if (value != 3) /* set 3 is acknowledged, yet we speak only 1 and 2 */
			k->scan_set = value;
		break;
	}
	kbd_answer(k, REPLY_ACK);
}

static void kbd_identify(struct i8042 *k)
{
	kbd_answer(k, REPLY_ACK);
	kbd_answer(k, 0xab); /* an MF II keyboard */
	kbd_answer(k, 0x83);
}

static void kbd_reset(struct i8042 *k)
{
	kbd_defaults(k);
	k->leds = 0;
	k->scanning = true;
	kbd_answer(k, REPLY_ACK);
	kbd_answer(k, REPLY_PASSED);
}

static void kbd_command(struct i8042 *k, uint8_t cmd)
{
	switch (cmd) {
	case KBD_LEDS:
	case KBD_SCAN_SET:
	case KBD_RATE:
	case KBD_ONE_FIRST ... KBD_ONE_LAST:
		k->kbd_cmd = cmd;
		return kbd_answer(k, REPLY_ACK);
	case KBD_ECHO:
		return kbd_answer(k, KBD_ECHO);
	case KBD_IDENTIFY:
		return kbd_identify(k);
	case KBD_ENABLE:
		k->scanning = true;
		return kbd_answer(k, REPLY_ACK);
	case KBD_DISABLE:
	case KBD_DEFAULTS:
		kbd_defaults(k);
		k->scanning = cmd == KBD_DEFAULTS;
		return kbd_answer(k, REPLY_ACK);
	case KBD_ALL_FIRST ... KBD_ALL_LAST:
		return kbd_answer(k, REPLY_ACK);
	case KBD_RESEND:
		return kbd_put(k, k->last_sent);
	case KBD_RESET:
		return kbd_reset(k);
	}
	kbd_answer(k, REPLY_RESEND);
}

static void kbd_write(struct i8042 *k, uint8_t byte)
{
	uint8_t cmd = k->kbd_cmd;

	k->ram[0] &= ~CB_NO_KBD; /* sending to the keyboard starts its clock */
	k->kbd_cmd = 0;
	if (cmd && byte < KBD_LEDS)
		kbd_param(k, cmd, byte);
	else
		kbd_command(k, byte);
}

/* The set-2 code that translates to this set-1 code; 0 = none. */
static uint8_t set2_of(uint8_t set1)
{
	if (set1 == 0x41)
		return 0x83; /* F7 */
	if (set1 == 0x54)
		return 0x84; /* SysRq */
	for (unsigned i = 1; i < sizeof(xlate); i++)
		if (xlate[i] == set1)
			return i;
	return 0;
}

static unsigned key_bytes(const struct i8042 *k, unsigned key, bool down, uint8_t *buf)
{
	uint8_t set1 = key & 0x7f;
	unsigned n = 0;

	if ((key & 0xff00) == I8042_EXTENDED)
		buf[n++] = EXTENDED_PREFIX;
	if (k->scan_set == 1) {
		buf[n++] = set1 | (down ? 0 : 0x80);
		return n;
	}
	if (!down)
		buf[n++] = BREAK_PREFIX;
	buf[n++] = set2_of(set1);
	return buf[n - 1] ? n : 0;
}

bool i8042_key(struct i8042 *k, unsigned key, bool down)
{
	uint8_t buf[3];
	unsigned n;
	bool scanning;

	pthread_mutex_lock(&k->lock);
	scanning = k->scanning;
	n = scanning ? key_bytes(k, key, down, buf) : 0;
	if (n && k->nr + n > QUEUE_FOR_KEYS) {
		if (k->nr < QUEUE_FOR_KEYS) /* says once that something is missing */
			kbd_put(k, REPLY_OVERRUN);
		n = 0;
	}
	for (unsigned i = 0; i < n; i++)
		kbd_put(k, buf[i]);
	pump(k);
	pthread_mutex_unlock(&k->lock);
	return scanning;
}

unsigned i8042_leds(struct i8042 *k)
{
	unsigned leds;

	pthread_mutex_lock(&k->lock);
	leds = k->leds;
	pthread_mutex_unlock(&k->lock);
	return leds;
}

/* ---- the controller: lock held ---- */

static void set_a20(struct i8042 *k, bool on)
{
	if (on == !!(k->out_port & OUT_A20))
		return;
	k->out_port = (k->out_port & ~OUT_A20) | (on ? OUT_A20 : 0);
	k->a20_changed = true;
}

static void write_ram(struct i8042 *k, unsigned i, uint8_t value)
{
	k->ram[i] = i ? value : value | CB_NO_AUX;
	if (i == 0)
		update_irq(k);
}

/* The data byte of a command that takes one. */
static void command_data(struct i8042 *k, uint8_t cmd, uint8_t value)
{
	switch (cmd) {
	case CMD_WRITE_RAM ... CMD_WRITE_RAM + RAM_SIZE - 1:
		return write_ram(k, cmd - CMD_WRITE_RAM, value);
	case CMD_WRITE_OUTPUT:
		set_a20(k, value & OUT_A20);
		k->want_reset |= !(value & OUT_NO_RESET);
		return;
	case CMD_KBD_LOOP:
	case CMD_AUX_LOOP: /* without the port the byte comes back as the keyboard's */
		return reply(k, value);
	case CMD_AUX_SEND:
		return output_put(k, REPLY_RESEND, ST_AUX | ST_TIMEOUT);
	}
}

static void self_test(struct i8042 *k)
{
	k->nr = 0;
	k->break_pending = false;
	k->status &= ~ST_OBF;
	k->ram[0] |= CB_SYSTEM;
	reply(k, 0x55);
}

static void command(struct i8042 *k, uint8_t cmd)
{
	k->pending_cmd = 0;
	switch (cmd) {
	case CMD_READ_RAM ... CMD_READ_RAM + RAM_SIZE - 1:
		return reply(k, k->ram[cmd - CMD_READ_RAM]);
	case CMD_WRITE_RAM ... CMD_WRITE_RAM + RAM_SIZE - 1:
	case CMD_WRITE_OUTPUT ... CMD_AUX_SEND:
		k->pending_cmd = cmd;
		return;
	case CMD_AUX_TEST:
		return reply(k, AUX_TEST_FAILED);
	case CMD_SELF_TEST:
		return self_test(k);
	case CMD_KBD_TEST:
		return reply(k, 0);
	case CMD_KBD_DISABLE:
		k->ram[0] |= CB_NO_KBD;
		return;
	case CMD_KBD_ENABLE:
		k->ram[0] &= ~CB_NO_KBD;
		return;
	case CMD_READ_INPUT:
		return reply(k, INPUT_UNLOCKED);
	case CMD_READ_OUTPUT:
		return reply(k, k->out_port | OUT_NO_RESET | (k->status & ST_OBF ? OUT_OBF : 0));
	case CMD_READ_TEST:
		return reply(k, 0);
	case CMD_PULSE ... 0xff: /* a zero bit pulses that output line low; line 0 is reset */
		k->want_reset |= !(cmd & OUT_NO_RESET);
		return;
	}
	/* A7, A8 and unknown ones have no effect: there is no port to switch. */
}

/* ---- ports ---- */

/* What the access asked of the machine, done without the lock. */
static void unlock_and_act(struct i8042 *k)
{
	bool reset = k->want_reset, a20 = k->a20_changed, on = k->out_port & OUT_A20;

	k->want_reset = k->a20_changed = false;
	pthread_mutex_unlock(&k->lock);
	if (a20 && k->cfg.a20)
		k->cfg.a20(k->cfg.opaque, on);
	if (reset && k->cfg.reset)
		k->cfg.reset(k->cfg.opaque);
}

static uint64_t data_read(void *opaque, uint64_t off, unsigned size)
{
	struct i8042 *k = opaque;
	uint8_t byte;

	pthread_mutex_lock(&k->lock);
	byte = k->output; /* an empty buffer shows its last byte again */
	k->status &= ~(ST_OBF | ST_AUX | ST_TIMEOUT);
	update_irq(k); /* falls, so that the next byte is an edge */
	pump(k);
	pthread_mutex_unlock(&k->lock);
	return byte;
}

static void data_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct i8042 *k = opaque;
	uint8_t cmd;

	pthread_mutex_lock(&k->lock);
	cmd = k->pending_cmd;
	k->pending_cmd = 0;
	k->status &= ~ST_COMMAND;
	if (cmd)
		command_data(k, cmd, value);
	else
		kbd_write(k, value);
	pump(k);
	unlock_and_act(k);
}

static uint64_t status_read(void *opaque, uint64_t off, unsigned size)
{
	struct i8042 *k = opaque;
	uint8_t v;

	pthread_mutex_lock(&k->lock);
	v = k->status | ST_UNLOCKED | (k->ram[0] & CB_SYSTEM ? ST_SYSTEM : 0);
	pthread_mutex_unlock(&k->lock);
	return v;
}

static void command_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct i8042 *k = opaque;

	pthread_mutex_lock(&k->lock);
	k->status |= ST_COMMAND;
	command(k, value);
	pump(k);
	unlock_and_act(k);
}

static uint64_t fast_read(void *opaque, uint64_t off, unsigned size)
{
	struct i8042 *k = opaque;
	uint8_t v;

	pthread_mutex_lock(&k->lock);
	v = k->fast | (k->out_port & OUT_A20 ? FAST_A20 : 0);
	pthread_mutex_unlock(&k->lock);
	return v;
}

static void fast_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct i8042 *k = opaque;

	pthread_mutex_lock(&k->lock);
	k->want_reset |= (value & FAST_RESET) && !(k->fast & FAST_RESET);
	k->fast = value & FAST_RESET;
	set_a20(k, value & FAST_A20);
	unlock_and_act(k);
}

static const struct io_ops data_ops = {data_read, data_write, 1};
static const struct io_ops command_ops = {status_read, command_write, 1};
static const struct io_ops fast_ops = {fast_read, fast_write, 1};

/* ---- life ---- */

/* As firmware leaves it: keyboard on, translated, interrupts off, A20 open. */
static void reset_locked(struct i8042 *k)
{
	memset(k->ram, 0, sizeof(k->ram));
	k->ram[0] = CB_SYSTEM | CB_NO_AUX | CB_XLATE;
	k->output = k->status = k->pending_cmd = k->fast = k->kbd_cmd = k->leds = 0;
	k->last_sent = 0;
	k->out_port = OUT_NO_RESET | OUT_A20;
	k->break_pending = false;
	k->head = 0;
	kbd_defaults(k);
	k->scanning = true;
	update_irq(k);
}

void i8042_reset(struct i8042 *k)
{
	pthread_mutex_lock(&k->lock);
	set_a20(k, true);
	reset_locked(k);
	unlock_and_act(k);
}

static int add_ports(struct i8042 *k, struct error *err)
{
	struct bus *b = k->cfg.bus;
	int r;

	r = bus_add_pio(b, PORT_DATA, 1, &data_ops, k, "i8042-data", &k->data_region, err);
	if (r < 0)
		return r;
	r = bus_add_pio(b, PORT_COMMAND, 1, &command_ops, k, "i8042-command", &k->command_region,
			err);
	if (r < 0)
		return r;
	return bus_add_pio(b, PORT_FAST, 1, &fast_ops, k, "port92", &k->fast_region, err);
}

int i8042_create(struct i8042 **out, const struct i8042_config *cfg, struct error *err)
{
	struct i8042 *k = calloc(1, sizeof(*k));
	int r;

	if (!k)
		return err_set(err, ENOMEM, "keyboard controller: out of memory");
	k->cfg = *cfg;
	pthread_mutex_init(&k->lock, NULL);
	reset_locked(k);
	r = add_ports(k, err);
	if (r < 0) {
		i8042_destroy(k);
		return err_wrap(err, r, "keyboard controller");
	}
	*out = k;
	return 0;
}

void i8042_destroy(struct i8042 *k)
{
	if (!k)
		return;
	if (k->data_region)
		bus_remove(k->cfg.bus, k->data_region);
	if (k->command_region)
		bus_remove(k->cfg.bus, k->command_region);
	if (k->fast_region)
		bus_remove(k->cfg.bus, k->fast_region);
	pthread_mutex_destroy(&k->lock);
	free(k);
}

static void load_finish(struct state *s, struct i8042 *k)
{
	state_check(s, k->head < QUEUE_SIZE && k->nr <= QUEUE_SIZE, "keyboard queue out of range");
	k->head %= QUEUE_SIZE;
	k->nr = MIN(k->nr, (uint32_t)QUEUE_SIZE);
	k->ram[0] |= CB_NO_AUX;
	k->status &= ST_OBF | ST_COMMAND | ST_AUX | ST_TIMEOUT;
	update_irq(k);
}

void i8042_state(struct state *s, void *i8042)
{
	struct i8042 *k = i8042;
	uint32_t head, nr;

	pthread_mutex_lock(&k->lock);
	head = k->head;
	nr = k->nr;
	state_enter(s, "i8042", 1);
	state_bytes(s, "ram", k->ram, sizeof(k->ram));
	state_u8(s, "output", &k->output);
	state_u8(s, "status", &k->status);
	state_u8(s, "pending_cmd", &k->pending_cmd);
	state_u8(s, "out_port", &k->out_port);
	state_u8(s, "fast", &k->fast);
	state_bool(s, "break_pending", &k->break_pending);
	state_bytes(s, "queue", k->queue, sizeof(k->queue));
	state_u32(s, "head", &head);
	state_u32(s, "nr", &nr);
	state_u8(s, "kbd_cmd", &k->kbd_cmd);
	state_u8(s, "leds", &k->leds);
	state_u8(s, "scan_set", &k->scan_set);
	state_u8(s, "last_sent", &k->last_sent);
	state_bool(s, "scanning", &k->scanning);
	if (state_loading(s)) {
		k->head = head;
		k->nr = nr;
		load_finish(s, k);
	}
	state_leave(s);
	pthread_mutex_unlock(&k->lock);
}
