/* block/qcow2/luks.c - see luks.h. */
#include "block/qcow2/luks.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>

enum {
	SECTOR = 512,
	DIGEST = 20,
	SLOT_BYTES = 48,
	STRIPES = 4000, /* "4000 stripes" is what everybody uses */
	SLOT_ALIGN = 4096,
	ITERATIONS_MIN = 1000,
	PROBE_ITERATIONS = 20000,
};

static const uint8_t magic[6] = {'L', 'U', 'K', 'S', 0xba, 0xbe};
static const uint32_t slot_on = 0x00ac71f3, slot_off = 0x0000dead;

/* ---- names ---- */

static const EVP_MD *digest_of(const char *name)
{
	static const char *const known[] = {"sha1",   "sha224", "sha256",
					    "sha384", "sha512", "ripemd160"};

	for (unsigned i = 0; i < ARRAY_SIZE(known); i++)
		if (!strcmp(name, known[i]))
			return EVP_get_digestbyname(name);
	return NULL;
}

static const EVP_CIPHER *cipher_of(const struct luks_cipher *c)
{
	if (c->mode == LUKS_XTS)
		return c->key_len == 32   ? EVP_aes_128_xts()
		       : c->key_len == 64 ? EVP_aes_256_xts()
					  : NULL;
	switch (c->key_len) {
	case 16:
		return EVP_aes_128_cbc();
	case 24:
		return EVP_aes_192_cbc();
	case 32:
		return EVP_aes_256_cbc();
	}
	return NULL;
}

static const char *essiv_hash(const char *name)
{
	static const char *const known[] = {"sha256", "sha1", "sha512"};

	for (unsigned i = 0; i < ARRAY_SIZE(known); i++)
		if (!strcmp(name, known[i]))
			return known[i];
	return NULL;
}

/* "cipher-mode": MODE-IVGEN[:HASH] */
static int parse_mode(const struct luks_header *h, struct luks_cipher *c)
{
	const char *iv = strchr(h->cipher_mode, '-');
	size_t n = iv ? (size_t)(iv - h->cipher_mode) : 0;

	*c = (struct luks_cipher){.key_len = h->key_len};
	if (strcmp(h->cipher_name, "aes") || n != 3)
		return -ENOTSUP;
	if (memcmp(h->cipher_mode, "xts", 3) && memcmp(h->cipher_mode, "cbc", 3))
		return -ENOTSUP;
	c->mode = h->cipher_mode[0] == 'x' ? LUKS_XTS : LUKS_CBC;
	iv++;
	if (!strcmp(iv, "plain"))
		c->iv = LUKS_PLAIN;
	else if (!strcmp(iv, "plain64"))
		c->iv = LUKS_PLAIN64;
	else if (!strncmp(iv, "essiv:", 6) && (c->iv_hash = essiv_hash(iv + 6)))
		c->iv = LUKS_ESSIV;
	else
		return -ENOTSUP;
	return cipher_of(c) ? 0 : -ENOTSUP;
}

/* ---- sectors ---- */

static int essiv_key(const struct luks_cipher *c, const uint8_t *key, uint8_t *out,
		     const EVP_CIPHER **ecb)
{
	unsigned len = 0;

	if (!EVP_Digest(key, c->key_len, out, &len, EVP_get_digestbyname(c->iv_hash), NULL))
		return -EIO;
	/* The tweak's cipher takes a key as long as the digest; AES has none of 20 or 64 bytes. */
	*ecb = len == 32 ? EVP_aes_256_ecb() : NULL;
	return *ecb ? 0 : -ENOTSUP;
}

static EVP_CIPHER_CTX *iv_context(const struct luks_cipher *c, const uint8_t *key)
{
	uint8_t digest[EVP_MAX_MD_SIZE];
	const EVP_CIPHER *ecb;
	EVP_CIPHER_CTX *ctx;

	if (essiv_key(c, key, digest, &ecb) < 0)
		return NULL;
	ctx = EVP_CIPHER_CTX_new();
	if (ctx && (!EVP_EncryptInit_ex(ctx, ecb, NULL, digest, NULL) ||
		    !EVP_CIPHER_CTX_set_padding(ctx, 0))) {
		EVP_CIPHER_CTX_free(ctx);
		ctx = NULL;
	}
	OPENSSL_cleanse(digest, sizeof(digest));
	return ctx;
}

static int make_iv(const struct luks_cipher *c, EVP_CIPHER_CTX *essiv, uint64_t sector, uint8_t *iv)
{
	uint8_t plain[16] = {0};
	int n;

	le64_store(plain, c->iv == LUKS_PLAIN ? (uint32_t)sector : sector);
	if (c->iv != LUKS_ESSIV) {
		memcpy(iv, plain, 16);
		return 1;
	}
	return EVP_EncryptUpdate(essiv, iv, &n, plain, 16);
}

int luks_crypt(const struct luks_cipher *c, const uint8_t *key, void *buf, size_t len,
	       uint64_t sector, bool encrypt)
{
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	EVP_CIPHER_CTX *essiv = c->iv == LUKS_ESSIV ? iv_context(c, key) : NULL;
	uint8_t iv[16], *p = buf;
	int ok = ctx && (c->iv != LUKS_ESSIV || essiv), n;

	ok = ok && EVP_CipherInit_ex(ctx, cipher_of(c), NULL, key, NULL, encrypt) &&
	     EVP_CIPHER_CTX_set_padding(ctx, 0);
	for (; ok && len; p += SECTOR, len -= SECTOR, sector++)
		ok = make_iv(c, essiv, sector, iv) &&
		     EVP_CipherInit_ex(ctx, NULL, NULL, NULL, iv, encrypt) &&
		     EVP_CipherUpdate(ctx, p, &n, p, SECTOR) && n == SECTOR;
	EVP_CIPHER_CTX_free(ctx);
	EVP_CIPHER_CTX_free(essiv);
	return ok ? 0 : -EIO;
}

/* ---- parsing ---- */

static void get_text(char *out, const uint8_t *p, size_t len)
{
	memcpy(out, p, len);
	out[len] = 0;
	for (; *out; out++)
		if (*out < ' ' || *out > '~')
			*out = '?';
}

static void get_slot(struct luks_slot *s, const uint8_t *p)
{
	s->active = be32_load(p) == slot_on;
	s->iterations = be32_load(p + 4);
	memcpy(s->salt, p + 8, sizeof(s->salt));
	s->material = be32_load(p + 40);
	s->stripes = be32_load(p + 44);
}

static bool slot_ok(const struct luks_header *h, const struct luks_slot *s, size_t len)
{
	if (!s->iterations || s->iterations > LUKS_ITERATIONS_MAX)
		return false;
	if (s->stripes < 2 || s->stripes > LUKS_STRIPES_MAX)
		return false;
	return s->material >= LUKS_HEADER / SECTOR + 1 &&
	       range_inside((uint64_t)s->material * SECTOR,
			    ALIGN_UP((uint64_t)s->stripes * h->key_len, SECTOR), len);
}

int luks_parse(struct luks_header *h, struct luks_cipher *c, const uint8_t *bytes, size_t len,
	       struct error *err)
{
	*h = (struct luks_header){0};
	if (len < LUKS_HEADER || memcmp(bytes, magic, sizeof(magic)))
		return err_set(err, EINVAL, "there is no LUKS header where one should be");
	if (be16_load(bytes + 6) != 1)
		return err_set(err, ENOTSUP, "LUKS version %u is not supported; 1 is",
			       be16_load(bytes + 6));
	get_text(h->cipher_name, bytes + 8, 32);
	get_text(h->cipher_mode, bytes + 40, 32);
	get_text(h->hash, bytes + 72, 32);
	h->payload = be32_load(bytes + 104);
	h->key_len = be32_load(bytes + 108);
	memcpy(h->mk_digest, bytes + 112, DIGEST);
	memcpy(h->mk_salt, bytes + 132, 32);
	h->mk_iterations = be32_load(bytes + 164);
	get_text(h->uuid, bytes + 168, 40);
	for (unsigned i = 0; i < LUKS_SLOTS; i++)
		get_slot(&h->slots[i], bytes + 208 + SLOT_BYTES * i);
	if (h->key_len > LUKS_KEY_MAX || parse_mode(h, c) < 0 || !digest_of(h->hash))
		return err_set(err, ENOTSUP,
			       "encryption with %s-%s, %u-bit key and %s is not supported",
			       h->cipher_name, h->cipher_mode, h->key_len * 8, h->hash);
	if (!h->mk_iterations || h->mk_iterations > LUKS_ITERATIONS_MAX)
		return err_set(err, EINVAL, "the LUKS header asks for %u rounds of hashing",
			       h->mk_iterations);
	for (unsigned i = 0; i < LUKS_SLOTS; i++)
		if (h->slots[i].active && !slot_ok(h, &h->slots[i], len))
			return err_set(err, EINVAL, "key slot %u of the LUKS header is damaged", i);
	return 0;
}

/* ---- "AF-Splitter" ---- */

static int diffuse_part(const EVP_MD *md, uint32_t i, uint8_t *p, size_t len)
{
	uint8_t in[4 + EVP_MAX_MD_SIZE], out[EVP_MAX_MD_SIZE];

	be32_store(in, i);
	memcpy(in + 4, p, len);
	if (!EVP_Digest(in, 4 + len, out, NULL, md, NULL))
		return -EIO;
	memcpy(p, out, len);
	return 0;
}

static int diffuse(const EVP_MD *md, uint8_t *p, size_t len)
{
	size_t step = (size_t)EVP_MD_size(md);
	int r = 0;

	for (uint32_t i = 0; i * step < len && !r; i++)
		r = diffuse_part(md, i, p + i * step, MIN(step, len - i * step));
	return r;
}

/* Mixes all stripes but the last into d. */
static int mix(const EVP_MD *md, const uint8_t *stripes, uint32_t nr, uint32_t len, uint8_t *d)
{
	int r = 0;

	memset(d, 0, len);
	for (uint32_t s = 0; s + 1 < nr && !r; s++) {
		for (uint32_t i = 0; i < len; i++)
			d[i] ^= stripes[(size_t)s * len + i];
		r = diffuse(md, d, len);
	}
	return r;
}

/* Both directions: the last stripe is the key under what the others mix to. */
static int combine(const EVP_MD *md, const uint8_t *stripes, uint32_t nr, uint32_t len,
		   const uint8_t *in, uint8_t *out)
{
	uint8_t d[LUKS_KEY_MAX];
	int r = mix(md, stripes, nr, len, d);

	for (uint32_t i = 0; i < len; i++)
		out[i] = in[i] ^ d[i];
	OPENSSL_cleanse(d, sizeof(d));
	return r;
}

/* ---- keys ---- */

static int derive(const char *secret, size_t secret_len, const uint8_t *salt, uint32_t iterations,
		  const EVP_MD *md, uint8_t *out, uint32_t len)
{
	return PKCS5_PBKDF2_HMAC(secret, (int)secret_len, salt, 32, (int)iterations, md, (int)len,
				 out)
		       ? 0
		       : -EIO;
}

static int check_key(const struct luks_header *h, const uint8_t *key)
{
	uint8_t digest[DIGEST];
	int r = derive((const char *)key, h->key_len, h->mk_salt, h->mk_iterations,
		       digest_of(h->hash), digest, DIGEST);

	if (r < 0)
		return r;
	return CRYPTO_memcmp(digest, h->mk_digest, DIGEST) ? -EACCES : 0;
}

static int try_slot(const struct luks_header *h, const struct luks_cipher *c,
		    const struct luks_slot *s, const uint8_t *bytes, const char *secret,
		    size_t secret_len, uint8_t *key)
{
	size_t len = ALIGN_UP((uint64_t)s->stripes * h->key_len, SECTOR);
	uint8_t *material = malloc(len), slot_key[LUKS_KEY_MAX];
	const EVP_MD *md = digest_of(h->hash);
	int r;

	if (!material)
		return -ENOMEM;
	memcpy(material, bytes + (size_t)s->material * SECTOR, len);
	r = derive(secret, secret_len, s->salt, s->iterations, md, slot_key, h->key_len);
	if (!r)
		r = luks_crypt(c, slot_key, material, len, 0, false);
	if (!r)
		r = combine(md, material, s->stripes, h->key_len,
			    material + (size_t)(s->stripes - 1) * h->key_len, key);
	if (!r)
		r = check_key(h, key);
	OPENSSL_cleanse(slot_key, sizeof(slot_key));
	OPENSSL_cleanse(material, len);
	free(material);
	return r;
}

int luks_unlock(const struct luks_header *h, const struct luks_cipher *c, const uint8_t *bytes,
		size_t len, const char *secret, size_t secret_len, uint8_t *key, struct error *err)
{
	int r = -EACCES;

	for (unsigned i = 0; i < LUKS_SLOTS && r == -EACCES; i++)
		if (h->slots[i].active)
			r = try_slot(h, c, &h->slots[i], bytes, secret, secret_len, key);
	if (r == -EACCES)
		return err_set(err, EACCES, "the passphrase opens none of the key slots");
	return r < 0 ? err_errno(err, -r, "cannot unlock") : 0;
}

/* ---- making a header ---- */

/* How many rounds take that long here. */
static uint32_t rounds_for(const EVP_MD *md, uint32_t key_len, uint64_t ms)
{
	uint8_t out[LUKS_KEY_MAX], salt[32] = {0};
	uint64_t begin = clock_mono_ns(), took;

	derive("probe", 5, salt, PROBE_ITERATIONS, md, out, key_len);
	took = MAX(clock_mono_ns() - begin, 1000ull);
	ms = MIN(ms, 60000ull);
	return (uint32_t)MIN(MAX(PROBE_ITERATIONS * ms * 1000000 / took, (uint64_t)ITERATIONS_MIN),
			     (uint64_t)LUKS_ITERATIONS_MAX);
}

static size_t slot_bytes(const struct luks_header *h)
{
	return ALIGN_UP((uint64_t)STRIPES * h->key_len, SLOT_ALIGN);
}

static void put_slot(const struct luks_slot *s, uint8_t *p)
{
	be32_store(p, s->active ? slot_on : slot_off);
	be32_store(p + 4, s->iterations);
	memcpy(p + 8, s->salt, sizeof(s->salt));
	be32_store(p + 40, s->material);
	be32_store(p + 44, s->stripes);
}

static void put_header(const struct luks_header *h, uint8_t *p)
{
	memcpy(p, magic, sizeof(magic));
	be16_store(p + 6, 1);
	memcpy(p + 8, h->cipher_name, 32);
	memcpy(p + 40, h->cipher_mode, 32);
	memcpy(p + 72, h->hash, 32);
	be32_store(p + 104, h->payload);
	be32_store(p + 108, h->key_len);
	memcpy(p + 112, h->mk_digest, DIGEST);
	memcpy(p + 132, h->mk_salt, 32);
	be32_store(p + 164, h->mk_iterations);
	memcpy(p + 168, h->uuid, 40);
	for (unsigned i = 0; i < LUKS_SLOTS; i++)
		put_slot(&h->slots[i], p + 208 + SLOT_BYTES * i);
}

static int make_uuid(char *out)
{
	uint8_t b[16];

	if (RAND_bytes(b, sizeof(b)) != 1)
		return -EIO;
	b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
	b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
	snprintf(out, 41, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
		 b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12],
		 b[13], b[14], b[15]);
	return 0;
}

static int fill_slot(const struct luks_header *h, const struct luks_cipher *c, const uint8_t *key,
		     const char *secret, size_t secret_len, uint8_t *bytes)
{
	const struct luks_slot *s = &h->slots[0];
	uint8_t *material = bytes + (size_t)s->material * SECTOR, slot_key[LUKS_KEY_MAX];
	size_t last = (size_t)(STRIPES - 1) * h->key_len;
	const EVP_MD *md = digest_of(h->hash);
	int r = RAND_bytes(material, (int)last) == 1 ? 0 : -EIO;

	if (!r)
		r = combine(md, material, STRIPES, h->key_len, key, material + last);
	if (!r)
		r = derive(secret, secret_len, s->salt, s->iterations, md, slot_key, h->key_len);
	if (!r)
		r = luks_crypt(c, slot_key, material,
			       ALIGN_UP((uint64_t)STRIPES * h->key_len, SECTOR), 0, true);
	OPENSSL_cleanse(slot_key, sizeof(slot_key));
	return r;
}

static int fill_header(struct luks_header *h, const struct luks_cipher *c, uint64_t iter_time_ms,
		       const char *secret, size_t secret_len, uint8_t *bytes)
{
	uint32_t per_slot = (uint32_t)(slot_bytes(h) / SECTOR);
	const EVP_MD *md = digest_of(h->hash);
	uint32_t rounds = rounds_for(md, h->key_len, iter_time_ms);
	uint8_t key[LUKS_KEY_MAX];
	int r = -EIO;

	for (unsigned i = 0; i < LUKS_SLOTS; i++)
		h->slots[i] = (struct luks_slot){.material = SLOT_ALIGN / SECTOR + per_slot * i,
						 .stripes = STRIPES};
	h->payload = SLOT_ALIGN / SECTOR + per_slot * LUKS_SLOTS;
	h->slots[0].active = true;
	h->slots[0].iterations = rounds;
	h->mk_iterations = MAX(rounds / 8, (uint32_t)ITERATIONS_MIN);
	if (RAND_priv_bytes(key, (int)h->key_len) == 1 && RAND_bytes(h->mk_salt, 32) == 1 &&
	    RAND_bytes(h->slots[0].salt, 32) == 1)
		r = make_uuid(h->uuid);
	if (!r)
		r = derive((const char *)key, h->key_len, h->mk_salt, h->mk_iterations, md,
			   h->mk_digest, DIGEST);
	if (!r)
		r = fill_slot(h, c, key, secret, secret_len, bytes);
	put_header(h, bytes);
	OPENSSL_cleanse(key, sizeof(key));
	return r;
}

int luks_format(struct luks_header *h, uint64_t iter_time_ms, const char *secret, size_t secret_len,
		uint8_t **bytes, size_t *len, struct error *err)
{
	struct luks_cipher c;
	int r;

	if (h->key_len > LUKS_KEY_MAX || parse_mode(h, &c) < 0 || !digest_of(h->hash))
		return err_set(err, ENOTSUP,
			       "encryption with %s-%s, %u-bit key and %s is not supported",
			       h->cipher_name, h->cipher_mode, h->key_len * 8, h->hash);
	if (secret_len > LUKS_SECRET_MAX)
		return err_set(err, EINVAL, "a passphrase has at most %u bytes", LUKS_SECRET_MAX);
	*len = SLOT_ALIGN + slot_bytes(h) * LUKS_SLOTS;
	*bytes = calloc(1, *len);
	if (!*bytes)
		return err_errno(err, ENOMEM, "encryption header");
	r = fill_header(h, &c, iter_time_ms, secret, secret_len, *bytes);
	if (r < 0) {
		free(*bytes);
		*bytes = NULL;
		return err_errno(err, -r, "cannot make an encryption header");
	}
	return 0;
}
