/* block/qcow2/pack.h - compression contexts that wait for their next use.
 *
 * For the qcow2 driver only.  Any thread; the lock guards the list.  At most as many contexts exist
 * as threads ever packed or unpacked at once, each below 1 MiB plus a cluster. */
#pragma once

#include <pthread.h>

struct q_codec;

struct q_codecs {
	pthread_mutex_t lock;
	struct q_codec *idle;
};

int q_codecs_init(struct q_codecs *cs);
void q_codecs_fini(struct q_codecs *cs);
