/* block/qcow2/luks.h - LUKS version 1 headers and the sector ciphers they name.
 *
 * Specification: LUKS On-Disk Format Specification 1.2.3; section names in comments are its own.
 * Knows nothing of qcow2: a header is bytes in memory, key material included.  Pure functions, any
 * thread.  The caller wipes keys it was given. */
#pragma once

#include "base/types.h"

struct error;

enum {
	LUKS_HEADER = 592,
	LUKS_SLOTS = 8,
	LUKS_KEY_MAX = 64,
	LUKS_SECRET_MAX = 4096,
	LUKS_STRIPES_MAX = 65536,
	/* About half a minute of one core: who asks for more wants to keep us busy. */
	LUKS_ITERATIONS_MAX = 1 << 26,
};

struct luks_cipher {
	enum { LUKS_XTS, LUKS_CBC } mode;
	enum { LUKS_PLAIN, LUKS_PLAIN64, LUKS_ESSIV } iv;
	const char *iv_hash; /* ESSIV: name of the digest */
	uint32_t key_len;
};

struct luks_slot {
	bool active;
	uint32_t iterations, material, stripes; /* material: sector in the header */
	uint8_t salt[32];
};

struct luks_header {
	char cipher_name[33], cipher_mode[33], hash[33], uuid[41];
	uint32_t payload, key_len, mk_iterations;
	uint8_t mk_digest[20], mk_salt[32];
	struct luks_slot slots[LUKS_SLOTS];
};

int luks_parse(struct luks_header *h, struct luks_cipher *c, const uint8_t *bytes, size_t len,
	       struct error *err);
/* The master key, if the passphrase opens a slot; -EACCES if none. */
int luks_unlock(const struct luks_header *h, const struct luks_cipher *c, const uint8_t *bytes,
		size_t len, const char *secret, size_t secret_len, uint8_t *key, struct error *err);
/* In place; whole sectors of 512 bytes, the first one has this number. */
int luks_crypt(const struct luks_cipher *c, const uint8_t *key, void *buf, size_t len,
	       uint64_t sector, bool encrypt);
/* A header with one slot: names, key_len given in *h. */
int luks_format(struct luks_header *h, uint64_t iter_time_ms, const char *secret, size_t secret_len,
		uint8_t **bytes, size_t *len, struct error *err);
