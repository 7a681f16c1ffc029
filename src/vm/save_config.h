/* vm/save_config.h - what a saved VM was: the CONFIG record.  For save*.c and fuzzing only. */
#pragma once

#include "engine/cpu_model.h"
#include "vm/vm.h"

struct state;

#define VM_DISK_VHOST "vhost-user" /* the "format" of a disk that another process serves */

struct saved_disk {
	char file[256]; /* its name, without the directory */
	char format[16];
	uint64_t size;
	uint32_t block_size;
	bool readonly, can_discard, can_zero;
};

struct saved_config {
	uint64_t when_ns; /* CLOCK_REALTIME */
	char version[16]; /* of Trivisor, for people */
	char engine[16];  /* likewise */
	uint32_t cpus;
	uint64_t memory, tsc_khz;
	struct cpu_model model;
	uint32_t nr_serials, nr_disks, nr_nets;
	bool micro, console, testdev, debugcon, has_exit_port;
	uint16_t exit_port;
	struct saved_disk disk[VM_MAX_DISKS];
};

/* Loading: every number is in its range and every string ends, or the state has failed. */
void saved_config_state(struct state *s, struct saved_config *c);
