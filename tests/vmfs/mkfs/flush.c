/* Writing what is in memory, and the end. */
#include "internal.h"

static void each_dir(struct mkfs *m, struct node *d)
{
	dir_write(m, d);
	for (uint64_t i = 0; i < d->children; i++) {
		struct node *n = d->child[i];

		if (!n->deleted && (n->type == TYPE_DIR || n == m->sdd))
			each_dir(m, n);
	}
}

static void each_fd(struct mkfs *m, struct node *d)
{
	node_write_fd(m, d);
	for (uint64_t i = 0; i < d->children; i++)
		if (!d->child[i]->deleted)
			each_fd(m, d->child[i]);
}

/* Directories may still grow and take blocks; then resource files get theirs; then nothing moves.
 */
void mkfs_flush(struct mkfs *m)
{
	lvm_write(m);
	heartbeats_write(m);
	each_dir(m, m->root);
	res_map_indirect(m);
	super_write(m);
	res_flush(m);
	each_fd(m, m->root);
}

static void free_tree(struct node *n)
{
	for (uint64_t i = 0; i < n->children; i++)
		free_tree(n->child[i]);
	node_free(n);
}

void mkfs_destroy(struct mkfs *m)
{
	free_tree(m->root);
	for (int k = 0; k < RES_COUNT; k++) {
		free(m->res[k].used);
		free(m->res[k].owner);
		free(m->res[k].note);
		free(m->res[k].block);
	}
	free(m->lfb);
	free(m->label);
	free(m->deleted);
	dev_close(m);
	free(m);
}

void mkfs_finish(struct mkfs *m, FILE *out)
{
	struct mkfs *older;

	mkfs_flush(m);
	if (out)
		manifest_write(m, out);
	for (; m; m = older) {
		older = m->older;
		mkfs_destroy(m);
	}
}
