/* cmd_recover_scan.c - hv recover scan, carve and check: what there is, and what is wrong with it.
 */
#include "programs/hv.h"
#include "programs/recover_cli.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* --- scan --------------------------------------------------------------------------------------
 */

struct counts {
	struct recover *rc;
	uint64_t by_state[REC_MADE + 1], doubtful;
	unsigned depth;
	struct error *err;
};

static int count(void *opaque, const struct rec_entry *e)
{
	struct counts *c = opaque;
	struct rec_entry copy = *e;
	int r = 0;

	if (copy.system)
		return 0;
	if (!copy.is_dir) {
		c->by_state[copy.state]++;
		c->doubtful += copy.worst > REC_INFERRED;
	} else if (c->depth < 64) {
		c->depth++;
		r = rec_children(c->rc->rec, copy.id, count, c, c->err);
		c->depth--;
	}
	return r < 0 ? r : 0;
}

static void print_volumes(struct recover *rc)
{
	const struct rec_volume *v;
	unsigned n = rec_volumes(rc->rec, &v);
	char uuid[VMFS_UUID_TEXT], size[32], label[VMFS_LABEL_MAX + 1];

	for (unsigned i = 0; i < n; i++, v++) {
		vmfs_uuid_text(&v->uuid, uuid);
		printf("volume %u%s: ", i, i == rc->opt.volume ? " (shown)" : "");
		if (v->version)
			printf("VMFS%u ", v->version);
		printf("\"%s\" %s, %s, %u extent%s",
		       recover_safe_text(v->label ?: "", label, sizeof(label)), uuid,
		       size_text(v->size, size, sizeof(size)), v->nr_extents,
		       v->nr_extents == 1 ? "" : "s");
		if (v->nr_missing)
			printf(", %u missing", v->nr_missing);
		if (v->older)
			printf(", older: another volume was made over it");
		printf(", %s\n", v->whole ? "in order" : "rebuilt from what was found");
	}
}

void recover_json_volumes(struct json *j, struct recover *rc)
{
	const struct rec_volume *v;
	unsigned n = rec_volumes(rc->rec, &v);
	char uuid[VMFS_UUID_TEXT];

	json_begin(j, "volumes", true);
	for (unsigned i = 0; i < n; i++, v++) {
		vmfs_uuid_text(&v->uuid, uuid);
		json_begin(j, NULL, false);
		json_text(j, "label", v->label ?: "");
		json_text(j, "uuid", uuid);
		json_number(j, "version", v->version);
		json_number(j, "size", v->size);
		json_number(j, "votes", v->votes);
		json_number(j, "extents", v->nr_extents);
		json_number(j, "missing", v->nr_missing);
		json_flag(j, "in-order", v->whole);
		json_flag(j, "older", v->older);
		json_flag(j, "shown", i == rc->opt.volume);
		json_end(j);
	}
	json_end(j);
}

static int print_vm(void *opaque, const struct rec_vm *vm)
{
	char name[256], safe[RECOVER_PATH_MAX], path[RECOVER_PATH_MAX], size[32];
	struct recover *rc = opaque;

	printf("VM \"%s\": %s", recover_safe_text(vm->name, name, sizeof(name)),
	       rec_state_name(vm->state));
	if (vm->worst != REC_EXACT)
		printf(", bytes: %s at worst", rec_trust_name(vm->worst));
	for (unsigned i = 0; i < vm->nr_disks; i++) {
		if (rec_path(rc->rec, vm->disk[i].descriptor, path, sizeof(path)) < 0)
			snprintf(path, sizeof(path), "?");
		printf("\n   %-8s %s, %s%s", vm->disk[i].slot ?: "",
		       recover_safe_text(path, safe, sizeof(safe)),
		       size_text(vm->disk[i].size, size, sizeof(size)),
		       vm->disk[i].extent ? "" : " (its data were not found)");
	}
	putchar('\n');
	if (vm->note)
		printf("   %s\n", recover_safe_text(vm->note, safe, sizeof(safe)));
	return 0;
}

struct vm_json {
	struct recover *rc;
	struct json *j;
};

static int json_vm(void *opaque, const struct rec_vm *vm)
{
	struct vm_json *o = opaque;
	char path[RECOVER_PATH_MAX];
	struct json *j = o->j;

	json_begin(j, NULL, false);
	json_text(j, "name", vm->name);
	json_text(j, "state", rec_state_name(vm->state));
	json_text(j, "trust", rec_trust_name(vm->worst));
	if (vm->vmx && rec_path(o->rc->rec, vm->vmx, path, sizeof(path)) == 0)
		json_text(j, "vmx", path);
	json_begin(j, "disks", true);
	for (unsigned i = 0; i < vm->nr_disks; i++) {
		json_begin(j, NULL, false);
		if (rec_path(o->rc->rec, vm->disk[i].descriptor, path, sizeof(path)) == 0)
			json_text(j, "descriptor", path);
		if (vm->disk[i].extent &&
		    rec_path(o->rc->rec, vm->disk[i].extent, path, sizeof(path)) == 0)
			json_text(j, "data", path);
		json_number(j, "size", vm->disk[i].size);
		json_text(j, "slot", vm->disk[i].slot ?: "");
		json_end(j);
	}
	json_end(j);
	if (vm->note)
		json_text(j, "note", vm->note);
	json_end(j);
	return 0;
}

int recover_json_vms(struct json *j, struct recover *rc, struct error *err)
{
	struct vm_json o = {rc, j};
	int r;

	json_begin(j, "machines", true);
	r = rec_vms(rc->rec, json_vm, &o, err);
	json_end(j);
	return r;
}

static int scan_json(struct recover *rc, const struct counts *c, struct error *err)
{
	struct json j = {.f = stdout};
	int r;

	json_begin(&j, NULL, false);
	recover_json_volumes(&j, rc);
	json_begin(&j, "files", false);
	for (unsigned s = 0; s <= REC_MADE; s++)
		json_number(&j, rec_state_name((enum rec_state)s), c->by_state[s]);
	json_number(&j, "doubtful", c->doubtful);
	json_end(&j);
	r = recover_json_vms(&j, rc, err);
	if (rec_notes(rc->rec))
		json_text(&j, "notes", rec_notes(rc->rec));
	if (rc->findings_path)
		json_text(&j, "findings", rc->findings_path);
	json_end(&j);
	return r;
}

static int scan_text(struct recover *rc, const struct counts *c, struct error *err)
{
	char line[2048], safe[2048];
	const char *notes = rec_notes(rc->rec);
	int r;

	print_volumes(rc);
	if (notes && *notes)
		for (const char *p = notes, *end; *p; p = *end ? end + 1 : end) {
			end = strchrnul(p, '\n');
			snprintf(line, sizeof(line), "%.*s", (int)MIN(end - p, 2000), p);
			printf("  %s\n", recover_safe_text(line, safe, sizeof(safe)));
		}
	printf("files:");
	for (unsigned s = 0; s <= REC_MADE; s++)
		if (c->by_state[s] || s == REC_LIVE)
			printf(" %" PRIu64 " %s,", c->by_state[s],
			       rec_state_name((enum rec_state)s));
	printf(" %" PRIu64 " with doubtful or missing bytes\n", c->doubtful);
	r = rec_vms(rc->rec, print_vm, rc, err);
	if (rc->findings_path && !rc->opt.quiet)
		fprintf(stderr, "findings: %s\n", rc->findings_path);
	return r;
}

static int scan_work(struct recover *rc)
{
	struct error err = {0};
	struct counts c = {.rc = rc, .err = &err};
	int r = rec_children(rc->rec, REC_ROOT, count, &c, &err);

	if (r >= 0)
		r = rc->opt.json ? scan_json(rc, &c, &err) : scan_text(rc, &c, &err);
	if (r < 0)
		return recover_fail(rc, &err);
	return c.doubtful ? RECOVER_EXIT_DOUBT : HV_EXIT_OK;
}

const struct recover_command recover_scan = {
	.name = "scan",
	.summary = "find out what is there, and keep it for the other commands",
	.usage = "[--full] SOURCE...",
	.help = "Reads the volume as it is; where that does not work looks for its metadata, and "
		"rebuilds\n"
		"what is lost from what is left.  With --full every byte is looked at, for deleted "
		"files and\n"
		"pieces of files too.  The findings are kept: other commands on the same sources "
		"begin with\n"
		"them, and an interrupted scan goes on where it was.\n",
	.depth = REC_META,
	.work = scan_work,
};

/* --- carve -------------------------------------------------------------------------------------
 */

struct carved {
	struct recover *rc;
	struct json json;
	struct error *err;
	unsigned depth;
	uint64_t n;
};

static void print_carved(struct carved *c, const struct rec_entry *e)
{
	char path[RECOVER_PATH_MAX], safe[RECOVER_PATH_MAX], size[32], trust[160];

	if (rec_path(c->rc->rec, e->id, path, sizeof(path)) < 0)
		return;
	printf("%-18s %9s  %s  [%s]\n", e->what ?: "?", size_text(e->length, size, sizeof(size)),
	       recover_safe_text(path, safe, sizeof(safe)),
	       recover_trust_text(e, trust, sizeof(trust)));
}

static int carved_one(void *opaque, const struct rec_entry *e)
{
	struct carved *c = opaque;
	struct rec_entry copy = *e;
	int r = 0;

	if (copy.is_dir && c->depth < 64) {
		c->depth++;
		r = rec_children(c->rc->rec, copy.id, carved_one, c, c->err);
		c->depth--;
		return r < 0 ? r : 0;
	}
	if (copy.state != REC_CARVED && copy.grade != 3)
		return 0;
	c->n++;
	if (c->rc->opt.json)
		recover_json_entry(&c->json, c->rc, &copy, true);
	else
		print_carved(c, &copy);
	return 0;
}

static int carve_work(struct recover *rc)
{
	struct error err = {0};
	struct carved c = {.rc = rc, .json = {.f = stdout}, .err = &err};
	int r;

	if (rc->opt.json)
		json_begin(&c.json, NULL, true);
	r = rec_children(rc->rec, REC_ROOT, carved_one, &c, &err);
	if (rc->opt.json)
		json_end(&c.json);
	else if (r >= 0 && c.n == 0)
		printf("no pieces of files were found\n");
	return r < 0 ? recover_fail(rc, &err) : HV_EXIT_OK;
}

const struct recover_command recover_carve = {
	.name = "carve",
	.summary = "find pieces of files by their content",
	.usage = "SOURCE...",
	.help = "Looks at every byte for what is of use without a file system: VMDK descriptors "
		"and sparse\n"
		"extents, VMX texts, NVRAM, logs, file systems of guests; and lists it with how "
		"sure its\n"
		"bytes are.  `hv recover cp SOURCE:/carved/NAME FILE` takes a piece.\n",
	.depth = REC_FULL,
	.work = carve_work,
};

/* --- check -------------------------------------------------------------------------------------
 */

struct checked {
	struct recover *rc;
	struct json json;
	uint64_t n[VMFS_DAMAGE + 1];
};

static const char *const severities[] = {
	[VMFS_INFO] = "info", [VMFS_WARNING] = "warning", [VMFS_DAMAGE] = "damage"};

static void on_finding(void *opaque, enum vmfs_severity severity, const char *what,
		       const char *sentence)
{
	struct checked *c = opaque;
	char safe[1024];

	c->n[severity]++;
	if (!c->rc->opt.json) {
		printf("%-8s %s\n", severities[severity],
		       recover_safe_text(sentence, safe, sizeof(safe)));
		return;
	}
	json_begin(&c->json, NULL, false);
	json_text(&c->json, "severity", severities[severity]);
	json_text(&c->json, "what", what);
	json_text(&c->json, "sentence", sentence);
	json_end(&c->json);
}

static int check_work(struct recover *rc)
{
	struct checked c = {.rc = rc, .json = {.f = stdout}};
	struct error err = {0};
	int r;

	if (rc->opt.json)
		json_begin(&c.json, NULL, true);
	r = rec_check(rc->rec, on_finding, &c, NULL, &err);
	if (rc->opt.json)
		json_end(&c.json);
	if (r < 0)
		return recover_fail(rc, &err);
	if (!rc->opt.json)
		printf("%" PRIu64 " damaged, %" PRIu64 " doubtful, %" PRIu64 " remarks\n",
		       c.n[VMFS_DAMAGE], c.n[VMFS_WARNING], c.n[VMFS_INFO]);
	return c.n[VMFS_DAMAGE] ? RECOVER_EXIT_DOUBT : HV_EXIT_OK;
}

const struct recover_command recover_check = {
	.name = "check",
	.summary = "look for contradictions in the file system",
	.usage = "SOURCE...",
	.help = "Reads all metadata and tells what contradicts itself, a sentence each.  Nothing "
		"is repaired:\n"
		"copy what you need with `hv recover cp`, then make the datastore anew.\n",
	.work = check_work,
};
