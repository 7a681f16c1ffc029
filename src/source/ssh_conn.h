/* source/ssh_conn.h - one connection to a file of another host, by the system's ssh program.
 *
 * For ssh.c only.  A small script runs there for as long as the connection lives, with nothing but
 * what ESXi's busybox has: it is sent lines that ask for blocks and answers with their bytes.
 * Files there are opened for reading only.  One thread at a time.  Errors are negative errno with a
 * sentence: what, where, why, what to try. */
#pragma once

#include "block/blk.h"

#include <sys/types.h>

/* ssh://[USER@]HOST[:PORT]/PATH, taken apart and checked. */
struct ssh_where {
	char *user, *host, *port; /* user, port: NULL when not said */
	char *path;               /* absolute */
	char shown[128];          /* "root@esx1", for messages */
};

int ssh_where_parse(struct ssh_where *w, const char *name, struct error *err);
void ssh_where_fini(struct ssh_where *w);

enum { SSH_ARGS = 40, SSH_TOKEN = 17, SSH_TEXT = 2048 };

/* What runs the connection; made once. */
struct ssh_how {
	char *program; /* split in place; args[] points into it */
	const char *args[SSH_ARGS];
	unsigned nr_args;
	int timeout_ms;
};

int ssh_how_init(struct ssh_how *h, const struct blk_remote_opts *remote, struct error *err);
void ssh_how_fini(struct ssh_how *h);

struct ssh_conn {
	pid_t pid; /* 0: there is none */
	int in, out, err;
	char token[SSH_TOKEN]; /* begins what the script says of itself, not of the file */
	char text[SSH_TEXT];   /* the end of what came on standard error */
	size_t text_len;
	int timeout_ms;
};

/* Connects and waits for the script.  *size: of the file, UINT64_MAX when that host cannot tell.
 * -ENOENT, -EACCES, -EISDIR, -EIO: the file; -EKEYREJECTED, -EPERM, -EPROTO, -ENOEXEC: pointless to
 * try again; others: the network. */
int ssh_conn_open(struct ssh_conn *c, const struct ssh_where *w, const struct ssh_how *h,
		  uint64_t *size, struct error *err);
void ssh_conn_close(struct ssh_conn *c);

/* SSH_DATA answers with count blocks of bs bytes.  SSH_PROBE_DATA first tries whether they can be
 * read, SSH_PROBE does only that: see ssh_conn_verdict.  The script ends when SSH_DATA fails. */
enum ssh_op { SSH_DATA = 'd', SSH_PROBE_DATA = 'p', SSH_PROBE = 't' };
int ssh_conn_ask(struct ssh_conn *c, enum ssh_op op, uint32_t bs, uint64_t skip, uint64_t count);
/* Some bytes, at most len; 0: the other side ended; -ETIMEDOUT; another errno. */
ssize_t ssh_conn_take(struct ssh_conn *c, void *buf, size_t len);
int ssh_conn_verdict(struct ssh_conn *c); /* 1: readable; 0: not; or -errno */

/* After ssh_conn_take did not bring bytes: why, as a sentence.  True: the file could not be read
 * there, the connection was good. */
bool ssh_conn_why(struct ssh_conn *c, const struct ssh_where *w, struct error *err);
