/* source/http_trust.c - see http_client.h: who we are, and whom we believe. */
#include "source/http_client.h"

#include "base/error.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_PASSWORD = 1024, HASH = 32, BASE64_HASH = 44 };

int http_read_password(const char *path, char **password, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	char text[MAX_PASSWORD + 1];
	ssize_t n = fd < 0 ? -1 : read(fd, text, MAX_PASSWORD + 1);
	int e = errno;

	if (fd >= 0)
		close(fd);
	if (n < 0)
		return err_errno(err, e, "cannot read the password file '%s'", path);
	if (n > MAX_PASSWORD || memchr(text, 0, (size_t)n))
		return err_set(err, EINVAL, "'%s' does not hold a password in its first line",
			       path);
	text[n] = 0;
	text[strcspn(text, "\r\n")] = 0;
	*password = strdup(text);
	explicit_bzero(text, sizeof(text));
	return *password ? 0 : err_errno(err, ENOMEM, "'%s'", path);
}

/* --- pins (RFC 7469: the SHA-256 of the DER of the SubjectPublicKeyInfo) ------------------------
 */

static void print_pin(const uint8_t *hash, char *pin)
{
	strcpy(pin, "sha256//");
	EVP_EncodeBlock((unsigned char *)pin + strlen(pin), hash, HASH);
}

static int hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool from_hex(const char *text, uint8_t *hash)
{
	for (unsigned i = 0; i < HASH; i++) {
		int high = hex(text[0]), low = high < 0 ? -1 : hex(text[1]);

		if (low < 0)
			return false;
		hash[i] = (uint8_t)(high << 4 | low);
		text += 2;
		if (*text == ':' && i + 1 < HASH)
			text++;
	}
	return !*text;
}

static bool from_base64(const char *text)
{
	unsigned char hash[BASE64_HASH];

	return strlen(text) == BASE64_HASH && text[BASE64_HASH - 1] == '=' &&
	       EVP_DecodeBlock(hash, (const unsigned char *)text, BASE64_HASH) == HASH + 1;
}

int http_parse_pin(const char *text, char **pin, struct error *err)
{
	uint8_t hash[HASH];
	char out[8 + BASE64_HASH + 1];

	if (!strncmp(text, "sha256//", 8) && from_base64(text + 8))
		snprintf(out, sizeof(out), "%s", text);
	else if (from_hex(text + (strncmp(text, "sha256:", 7) ? 0 : 7), hash))
		print_pin(hash, out);
	else
		return err_set(err, EINVAL,
			       "'%s' is no pin: sha256//BASE64 of the server's public key, or 64 "
			       "hex digits",
			       text);
	*pin = strdup(out);
	return *pin ? 0 : err_errno(err, ENOMEM, "pin");
}

static bool pin_of(const char *pem, char *pin)
{
	BIO *bio = BIO_new_mem_buf(pem, -1);
	X509 *cert = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
	unsigned char *der = NULL;
	uint8_t hash[HASH];
	int len = cert ? i2d_X509_PUBKEY(X509_get_X509_PUBKEY(cert), &der) : -1;
	bool ok = len > 0 && EVP_Digest(der, (size_t)len, hash, NULL, EVP_sha256(), NULL);

	if (ok)
		print_pin(hash, pin);
	OPENSSL_free(der);
	X509_free(cert);
	BIO_free(bio);
	return ok;
}

static const char *first_certificate(const struct curl_certinfo *info)
{
	for (int i = 0; i < info->num_of_certs; i++)
		for (struct curl_slist *l = info->certinfo[i]; l; l = l->next)
			if (!strncmp(l->data, "Cert:", 5))
				return l->data + 5;
	return NULL;
}

/* Connects and asks for nothing: nothing is told to whoever is there. */
bool http_shown_pin(const struct http_site *s, char *pin, size_t cap)
{
	struct curl_certinfo *info = NULL;
	CURL *c = curl_easy_init();
	const char *pem = NULL;
	char text[8 + BASE64_HASH + 1];
	bool ok = false;

	if (!c)
		return false;
	curl_easy_setopt(c, CURLOPT_URL, s->url);
	curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "https");
	curl_easy_setopt(c, CURLOPT_CONNECT_ONLY, 1L);
	curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(c, CURLOPT_TIMEOUT, 15L);
	curl_easy_setopt(c, CURLOPT_SSL_VERIFYPEER, 0L);
	curl_easy_setopt(c, CURLOPT_SSL_VERIFYHOST, 0L);
	curl_easy_setopt(c, CURLOPT_CERTINFO, 1L);
	if (curl_easy_perform(c) == CURLE_OK &&
	    curl_easy_getinfo(c, CURLINFO_CERTINFO, &info) == CURLE_OK && info)
		pem = first_certificate(info);
	if (pem)
		ok = pin_of(pem, text);
	if (ok)
		snprintf(pin, cap, "%s", text);
	curl_easy_cleanup(c);
	return ok;
}

/* --- sessions (vSphere Web Services: SessionManager.Login) --------------------------------------
 */

static char *escape(char *to, const char *text)
{
	for (; *text; text++) {
		switch (*text) {
		case '<':
			to = stpcpy(to, "&lt;");
			break;
		case '>':
			to = stpcpy(to, "&gt;");
			break;
		case '&':
			to = stpcpy(to, "&amp;");
			break;
		default:
			*to++ = *text;
		}
	}
	*to = 0;
	return to;
}

static char *login_body(const struct http_site *s, const char *manager)
{
	static const char head[] = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><soapenv:Envelope "
				   "xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\">"
				   "<soapenv:Body><Login xmlns=\"urn:vim25\">"
				   "<_this type=\"SessionManager\">";
	const char *password = s->password ? s->password : "";
	char *body = malloc(sizeof(head) + 5 * (strlen(s->user) + strlen(password)) + 256), *to;

	if (!body)
		return NULL;
	to = stpcpy(body, head);
	to = stpcpy(to, manager);
	to = stpcpy(to, "</_this><userName>");
	to = escape(to, s->user);
	to = stpcpy(to, "</userName><password>");
	to = escape(to, password);
	stpcpy(to, "</password></Login></soapenv:Body></soapenv:Envelope>");
	return body;
}

static size_t ignore_body(char *data, size_t size, size_t n, void *opaque)
{
	return n;
}

/* https://host/folder/... -> https://host/sdk, with a handle that goes nowhere else. */
static CURL *login_handle(struct http_site *s, char *body, struct curl_slist **headers)
{
	CURL *c = http_handle_new(s);
	CURLU *u = curl_url();
	char *url = NULL;

	*headers = curl_slist_append(NULL, "Content-Type: text/xml; charset=utf-8");
	if (u && !curl_url_set(u, CURLUPART_URL, s->url, 0) &&
	    !curl_url_set(u, CURLUPART_PATH, "/sdk", 0) &&
	    !curl_url_set(u, CURLUPART_QUERY, NULL, 0))
		curl_url_get(u, CURLUPART_URL, &url, 0);
	if (c && url) {
		curl_easy_setopt(c, CURLOPT_URL, url);
		curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
		curl_easy_setopt(c, CURLOPT_POSTFIELDS, body);
		curl_easy_setopt(c, CURLOPT_HTTPHEADER, *headers);
		curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, ignore_body);
		curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, NULL);
	} else if (c) {
		curl_easy_cleanup(c);
		c = NULL;
	}
	curl_free(url);
	curl_url_cleanup(u);
	return c;
}

/* The HTTP status, or -errno. */
static int try_manager(struct http_site *s, const char *manager)
{
	char *body = login_body(s, manager);
	struct curl_slist *headers = NULL;
	CURL *c = body ? login_handle(s, body, &headers) : NULL;
	long status = 0;
	int r = -ENOMEM;

	if (c) {
		r = curl_easy_perform(c) == CURLE_OK ? 0 : -ENOTCONN;
		curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
		curl_easy_cleanup(c);
	}
	curl_slist_free_all(headers);
	if (body)
		explicit_bzero(body, strlen(body));
	free(body);
	return r < 0 ? r : (int)status;
}

int http_log_in(struct http_site *s, CURL *c, struct error *err)
{
	int status;

	pthread_mutex_lock(&s->login);
	status = try_manager(s, "ha-sessionmgr"); /* an ESXi host's; then vCenter's */
	if (status >= 400)
		status = try_manager(s, "SessionManager");
	pthread_mutex_unlock(&s->login);
	if (status < 0)
		return err_errno(err, -status, "cannot log in to '%s'", s->url);
	if (status != 200)
		return err_set(err, EACCES,
			       "'%s': the server does not know user '%s' with this password",
			       s->url, s->user);
	return 0;
}
