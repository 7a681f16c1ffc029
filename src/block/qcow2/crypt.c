/* block/qcow2/crypt.c - encryption of guest data with the ciphers of libcrypto ("Data encryption").
 *
 * Method 2: a LUKS1 header in the image (LUKS On-Disk Format Specification 1.2.3), tweaks are
 * sectors of the file.  Method 1, read only: AES-128-CBC with the passphrase itself as the key,
 * tweaks are sectors of the disk. */
#include "block/qcow2/luks.h"
#include "block/qcow2/qcow2.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>

enum { AES_KEY = 16 };

struct q_luks {
	struct luks_cipher cipher;
	struct luks_header header; /* method 2 */
	uint8_t key[LUKS_KEY_MAX];
	bool by_guest; /* the tweak is the guest's sector */
};

/* ---- data ---- */

static int crypt_sectors(struct qcow2 *q, void *buf, size_t len, uint64_t guest, uint64_t host,
			 bool encrypt)
{
	const struct q_luks *k = q->luks;

	if (!k) /* opened to be looked at, without a passphrase */
		return -EACCES;
	return luks_crypt(&k->cipher, k->key, buf, len, (k->by_guest ? guest : host) / Q_SECTOR,
			  encrypt);
}

int q_decrypt(struct qcow2 *q, void *buf, size_t len, uint64_t guest, uint64_t host)
{
	return crypt_sectors(q, buf, len, guest, host, false);
}

int q_encrypt(struct qcow2 *q, void *buf, size_t len, uint64_t guest, uint64_t host)
{
	return crypt_sectors(q, buf, len, guest, host, true);
}

/* ---- opening ---- */

static int open_aes(struct q_luks *k, const char *secret, int len)
{
	k->by_guest = true;
	k->cipher = (struct luks_cipher){.mode = LUKS_CBC, .iv = LUKS_PLAIN64, .key_len = AES_KEY};
	memcpy(k->key, secret, (size_t)MIN(len, AES_KEY));
	return 0;
}

static int open_luks(struct qcow2 *q, struct q_luks *k, const char *secret, int len,
		     struct error *err)
{
	uint8_t *bytes = malloc(q->h.crypt_len);
	int r = bytes ? q_file_read(q->file, bytes, q->h.crypt_len, q->h.crypt_host) : -ENOMEM;

	if (r < 0)
		err_errno(err, -r, "cannot read the encryption header");
	else
		r = luks_parse(&k->header, &k->cipher, bytes, q->h.crypt_len, err);
	if (!r)
		r = luks_unlock(&k->header, &k->cipher, bytes, q->h.crypt_len, secret, (size_t)len,
				k->key, err);
	free(bytes);
	return r < 0 ? err_wrap(err, r, "'%s'", q->b->path) : 0;
}

int q_crypt_open(struct qcow2 *q, struct error *err)
{
	char secret[LUKS_SECRET_MAX];
	int len = blk_secret(q->b, secret, sizeof(secret), err), r;
	struct q_luks *k;

	if (len < 0)
		return len;
	k = calloc(1, sizeof(*k));
	if (!k)
		r = err_errno(err, ENOMEM, "'%s'", q->b->path);
	else if (q->h.crypt == Q_CRYPT_AES)
		r = open_aes(k, secret, len);
	else
		r = open_luks(q, k, secret, len, err);
	OPENSSL_cleanse(secret, sizeof(secret));
	q->luks = k;
	if (r < 0)
		q_crypt_fini(q);
	return r;
}

void q_crypt_fini(struct qcow2 *q)
{
	if (!q->luks)
		return;
	OPENSSL_cleanse(q->luks, sizeof(*q->luks));
	free(q->luks);
	q->luks = NULL;
}

/* ---- telling ---- */

static int read_header(struct qcow2 *q, struct luks_header *h)
{
	struct luks_cipher cipher;
	uint8_t *bytes = malloc(q->h.crypt_len);
	int r = bytes ? q_file_read(q->file, bytes, q->h.crypt_len, q->h.crypt_host) : -ENOMEM;

	if (!r)
		r = luks_parse(h, &cipher, bytes, q->h.crypt_len, NULL);
	free(bytes);
	return r;
}

void q_crypt_details(struct qcow2 *q, struct blk_sink *s)
{
	struct luks_header h;
	unsigned active = 0;

	s->begin(s, "encrypt", false);
	s->text(s, "format", q->h.crypt == Q_CRYPT_LUKS ? "luks" : "aes");
	if (q->h.crypt == Q_CRYPT_LUKS && !read_header(q, &h)) {
		for (unsigned i = 0; i < LUKS_SLOTS; i++)
			active += h.slots[i].active;
		s->text(s, "cipher-name", h.cipher_name);
		s->text(s, "cipher-mode", h.cipher_mode);
		s->text(s, "hash-alg", h.hash);
		s->text(s, "uuid", h.uuid);
		s->number(s, "master-key-iters", h.mk_iterations);
		s->number(s, "slots-in-use", active);
	}
	s->end(s);
}

/* ---- making ---- */

static const char * or (const char *value, const char *preset)
{
	return value ? value : preset;
}

int q_luks_format(const struct q_luks_params *p, const char *secret, size_t secret_len,
		  uint8_t **bytes, size_t *len, struct error *err)
{
	struct luks_header h = {0};
	const char *alg = or (p->cipher_alg, "aes-256"), *mode = or (p->cipher_mode, "xts");
	const char *ivgen = or (p->ivgen_alg, "plain64");
	unsigned bits = !strcmp(alg, "aes-128")   ? 128
			: !strcmp(alg, "aes-192") ? 192
			: !strcmp(alg, "aes-256") ? 256
						  : 0;

	if (!bits)
		return err_set(err, EINVAL, "encrypt.cipher-alg=%s is not known", alg);
	h.key_len = bits / 8 * (strcmp(mode, "xts") ? 1 : 2);
	snprintf(h.cipher_name, sizeof(h.cipher_name), "aes");
	if (strcmp(ivgen, "essiv"))
		snprintf(h.cipher_mode, sizeof(h.cipher_mode), "%.8s-%.16s", mode, ivgen);
	else
		snprintf(h.cipher_mode, sizeof(h.cipher_mode), "%.8s-essiv:%.12s", mode,
			 or (p->ivgen_hash, "sha256"));
	snprintf(h.hash, sizeof(h.hash), "%s", or (p->hash, "sha256"));
	return luks_format(&h, p->iter_time_ms, secret, secret_len, bytes, len, err);
}
