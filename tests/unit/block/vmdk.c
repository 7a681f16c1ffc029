/* Unit tests of src/block/vmdk: what is written is there, in every subformat and in chains. */
#include "vmdk_fixture.h"

#include "base/bytes.h"

#include <pthread.h>

#define ODD_SIZE (5 * MiB + 77 * 512)

/* --- every subformat --------------------------------------------------------------------------
 */

static void is_like_its_shadow(const char *subformat)
{
	struct shadow s;
	struct blk *b;

	create("a.vmdk", subformat, ODD_SIZE, NULL);
	shadow_init(&s, ODD_SIZE);
	b = open_disk("a.vmdk", 0);
	same_content(b, &s);
	for (int i = 0; i < 5; i++) {
		random_ops(b, &s, 100);
		same_content(b, &s);
		blk_close(b);
		b = open_disk("a.vmdk", i % 2 ? 0 : BLK_READONLY);
		same_content(b, &s);
		if (blk_info(b)->readonly) {
			blk_close(b);
			b = open_disk("a.vmdk", 0);
		}
	}
	blk_close(b);
	shadow_free(&s);
}

TEST(monolithic_sparse_holds_what_is_written)
{
	is_like_its_shadow("monolithicSparse");
	check_clean("a.vmdk");
}

TEST(monolithic_flat_holds_what_is_written)
{
	is_like_its_shadow("monolithicFlat");
	CHECK_EQ(ODD_SIZE, size_of("a-flat.vmdk"));
}

TEST(split_sparse_holds_what_is_written)
{
	is_like_its_shadow("twoGbMaxExtentSparse");
	check_clean("a.vmdk");
}

TEST(split_flat_holds_what_is_written)
{
	is_like_its_shadow("twoGbMaxExtentFlat");
}

TEST(stream_optimised_holds_what_is_written)
{
	is_like_its_shadow("streamOptimized");
	CHECK_EQ(0, check_disk("a.vmdk", 0).corruptions);
}

TEST(vmfs_flat_holds_what_is_written)
{
	is_like_its_shadow("vmfs");
}

TEST(vmfs_thin_holds_what_is_written)
{
	is_like_its_shadow("vmfsThin");
}

TEST(vmfs_sparse_holds_what_is_written)
{
	is_like_its_shadow("vmfsSparse");
	check_clean("a.vmdk");
}

TEST(sesparse_holds_what_is_written)
{
	is_like_its_shadow("seSparse");
	check_clean("a.vmdk");
}

TEST(zeroed_grains_hold_what_is_written)
{
	struct blk_kv opt = {"zeroed_grain", "on"};
	struct blk_create c = {.path = at("a.vmdk"), .size = ODD_SIZE, .opt = &opt, .nr_opts = 1};
	struct shadow s;
	struct blk *b;

	CHECK_EQ(0, blk_create("vmdk", &c, NULL));
	shadow_init(&s, ODD_SIZE);
	b = open_disk("a.vmdk", 0);
	random_ops(b, &s, 300);
	blk_close(b);
	b = open_disk("a.vmdk", BLK_READONLY);
	same_content(b, &s);
	blk_close(b);
	check_clean("a.vmdk");
	shadow_free(&s);
}

TEST(subformat_names_ignore_case)
{
	struct blk *b;

	create("a.vmdk", "MONOLITHICFLAT", MiB, NULL);
	b = open_disk("a.vmdk", 0);
	CHECK_EQ(MiB, blk_info(b)->size);
	blk_close(b);
}

TEST(a_split_disk_has_pieces_of_two_gib)
{
	uint64_t edge = 2 * GiB;
	uint8_t buf[4096], got[4096];
	struct blk *b;

	create("a.vmdk", "twoGbMaxExtentSparse", 2 * edge + 5 * MiB, NULL);
	CHECK_EQ(0, access(at("a-s003.vmdk"), F_OK));
	CHECK(access(at("a-s004.vmdk"), F_OK) < 0);
	fill(buf, sizeof(buf));
	b = open_disk("a.vmdk", 0);
	CHECK_EQ(2 * edge + 5 * MiB, blk_info(b)->size);
	CHECK_EQ(0, blk_write(b, buf, sizeof(buf), edge - 1000));
	CHECK_EQ(0, blk_write(b, buf, sizeof(buf), 2 * edge + 5 * MiB - sizeof(buf)));
	blk_close(b);
	b = open_disk("a.vmdk", BLK_READONLY);
	CHECK_EQ(0, blk_read(b, got, sizeof(got), edge - 1000));
	CHECK_EQ(0, memcmp(buf, got, sizeof(got)));
	CHECK_EQ(0, blk_read(b, got, sizeof(got), 2 * edge + 5 * MiB - sizeof(buf)));
	CHECK_EQ(0, memcmp(buf, got, sizeof(got)));
	blk_close(b);
}

static void far_end_is_reached(const char *subformat, uint64_t size)
{
	uint8_t buf[512], got[512];
	struct blk *b;

	fill(buf, sizeof(buf));
	create("a.vmdk", subformat, size, NULL);
	b = open_disk("a.vmdk", 0);
	CHECK_EQ(0, blk_write(b, buf, sizeof(buf), size - sizeof(buf)));
	blk_close(b);
	b = open_disk("a.vmdk", BLK_READONLY);
	CHECK_EQ(size, blk_info(b)->size);
	CHECK_EQ(0, blk_read(b, got, sizeof(got), size - sizeof(got)));
	CHECK_EQ(0, memcmp(buf, got, sizeof(got)));
	if (size > 1024) {
		CHECK_EQ(0, blk_read(b, got, sizeof(got), size / 2));
		CHECK_EQ(0, got[100]);
	}
	blk_close(b);
}

TEST(disks_over_two_tib_are_sparse)
{
	far_end_is_reached("monolithicSparse", 2048 * GiB + 4 * GiB + 512);
	CHECK(size_of("a.vmdk") < GiB);
}

TEST(streams_over_two_tib_are_small)
{
	far_end_is_reached("streamOptimized", 3072 * GiB + 512);
	CHECK(size_of("a.vmdk") < MiB);
}

TEST(sesparse_over_two_tib)
{
	far_end_is_reached("seSparse", 2500 * GiB);
}

TEST(vmfs_sparse_ends_at_two_tib)
{
	struct error err = {""};

	far_end_is_reached("vmfsSparse", 2048 * GiB - 512);
	CHECK(try_create("b.vmdk", "vmfsSparse", 2049 * GiB, NULL, &err) < 0);
	CHECK(strstr(err.msg, "2 TiB"));
	CHECK(access(at("b.vmdk"), F_OK) < 0);
	CHECK(access(at("b-delta.vmdk"), F_OK) < 0);
}

TEST(a_disk_of_one_sector)
{
	far_end_is_reached("monolithicSparse", 512);
	remove_dir();
	dir[0] = '\0';
	far_end_is_reached("streamOptimized", 512);
}

/* --- many threads -----------------------------------------------------------------------------
 */

enum { THREADS = 4, SLICE = 4096, THREAD_OPS = 400 };

struct worker {
	struct blk *b;
	struct shadow *s;
	unsigned number;
	int failed;
};

/* Each thread has its own pages, of every fourth one: all share grains. */
static void *work(void *opaque)
{
	struct worker *w = opaque;
	uint64_t seed = w->number * 7919 + 1, pages = w->s->size / SLICE / THREADS;
	uint8_t got[SLICE];

	for (int i = 0; i < THREAD_OPS; i++) {
		uint64_t off;

		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		off = ((seed >> 33) % pages * THREADS + w->number) * SLICE;
		memset(w->s->data + off, (int)(seed >> 20) | 1, SLICE);
		if (blk_write(w->b, w->s->data + off, SLICE, off) < 0 ||
		    blk_read(w->b, got, SLICE, off) < 0 ||
		    memcmp(got, w->s->data + off, SLICE) != 0)
			w->failed++;
		if (i % 100 == 99 && blk_flush(w->b) < 0)
			w->failed++;
	}
	return NULL;
}

static void threads_share(const char *subformat, const char *backing)
{
	struct worker w[THREADS];
	pthread_t t[THREADS];
	struct shadow s;
	struct blk *b;

	create("t.vmdk", subformat, backing ? 0 : 8 * MiB, backing);
	b = open_disk("t.vmdk", 0);
	shadow_init(&s, blk_info(b)->size);
	CHECK_EQ(0, blk_read(b, s.data, s.size, 0));
	for (unsigned i = 0; i < THREADS; i++) {
		w[i] = (struct worker){b, &s, i, 0};
		CHECK_EQ(0, pthread_create(&t[i], NULL, work, &w[i]));
	}
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(t[i], NULL);
		CHECK_EQ(0, w[i].failed);
	}
	same_content(b, &s);
	blk_close(b);
	b = open_disk("t.vmdk", BLK_READONLY);
	same_content(b, &s);
	blk_close(b);
	CHECK_EQ(0, check_disk("t.vmdk", 0).corruptions);
	shadow_free(&s);
}

TEST(threads_share_sparse_grains)
{
	threads_share("monolithicSparse", NULL);
	check_clean("t.vmdk");
}

TEST(threads_share_packed_grains)
{
	threads_share("streamOptimized", NULL);
}

TEST(threads_share_grains_over_a_parent)
{
	struct shadow s;
	struct blk *b;

	create("base.vmdk", NULL, 8 * MiB, NULL);
	b = open_disk("base.vmdk", 0);
	shadow_init(&s, 8 * MiB);
	random_write(b, &s, 0, s.size);
	blk_close(b);
	shadow_free(&s);
	threads_share("monolithicSparse", "base.vmdk");
}

TEST(threads_share_small_grains)
{
	threads_share("seSparse", NULL);
	check_clean("t.vmdk");
}

/* --- chains -----------------------------------------------------------------------------------
 */

static void layer(const char *name, const char *subformat, const char *backing, struct shadow *s)
{
	struct blk *b;

	create(name, subformat, backing ? 0 : s->size, backing);
	b = open_disk(name, 0);
	same_content(b, s);
	random_ops(b, s, 60);
	same_content(b, s);
	blk_close(b);
	b = open_disk(name, BLK_READONLY);
	same_content(b, s);
	blk_close(b);
}

TEST(chains_mix_all_kinds)
{
	struct blk_map m = {.len = 512};
	struct shadow s;
	struct blk *b;

	shadow_init(&s, ODD_SIZE);
	layer("0.vmdk", "monolithicFlat", NULL, &s);
	layer("1.vmdk", "vmfsSparse", "0.vmdk", &s);
	layer("2.vmdk", "monolithicSparse", "1.vmdk", &s);
	layer("3.vmdk", "seSparse", "2.vmdk", &s);
	layer("4.vmdk", "twoGbMaxExtentSparse", "3.vmdk", &s);
	layer("5.vmdk", "streamOptimized", "4.vmdk", &s);
	b = open_disk("5.vmdk", BLK_READONLY);
	CHECK(blk_backing(blk_backing(b)));
	CHECK_EQ(0, blk_map(b, 0, &m));
	CHECK(m.depth <= 5);
	blk_close(b);
	shadow_free(&s);
}

/* Two names one after the other in one directory, from a machine with other paths. */
static void rename_parent(const char *child, const char *from, const char *to)
{
	char text[4096] = "", *p;
	uint64_t off = size_of(child) > 60000 ? 512 : 0;

	peek(child, off, text, MIN(sizeof(text) - 1, size_of(child) - off));
	p = strstr(text, from);
	CHECK(p);
	CHECK_EQ(strlen(from), strlen(to));
	memcpy(p, to, strlen(to));
	poke(child, off, text, MIN(sizeof(text) - 1, size_of(child) - off));
}

TEST(a_parent_is_found_by_its_name_beside_us)
{
	struct blk *b;
	char got[6];

	create("base.vmdk", NULL, MiB, NULL);
	b = open_disk("base.vmdk", 0);
	CHECK_EQ(0, blk_write(b, "hello", 6, 0));
	blk_close(b);
	create("x.vmdk", NULL, 0, "././././././base.vmdk");
	rename_parent("x.vmdk", "././././././base.vmdk", "D:\\vms\\disk\\base.vmdk");
	b = open_disk("x.vmdk", 0);
	CHECK_EQ(0, blk_read(b, got, 6, 0));
	CHECK_STR("hello", got);
	blk_close(b);
}

TEST(a_parent_is_found_by_its_cid)
{
	struct blk *b;
	char got[6];

	create("base.vmdk", NULL, MiB, NULL);
	b = open_disk("base.vmdk", 0);
	CHECK_EQ(0, blk_write(b, "hello", 6, 0));
	blk_close(b);
	create("decoy.vmdk", NULL, MiB, NULL);
	create("x.vmdk", "vmfsSparse", 0, "base.vmdk");
	CHECK_EQ(0, rename(at("base.vmdk"), at("renamed.vmdk")));
	b = open_disk("x.vmdk", BLK_READONLY);
	CHECK_EQ(0, blk_read(b, got, 6, 0));
	CHECK_STR("hello", got);
	blk_close(b);
}

TEST(a_missing_parent_is_never_zeroes)
{
	struct blk *b;

	create("base.vmdk", NULL, MiB, NULL);
	create("x.vmdk", NULL, 0, "base.vmdk");
	unlink(at("base.vmdk"));
	open_refused("x.vmdk", BLK_READONLY, "base.vmdk");
	open_refused("x.vmdk", 0, "base.vmdk");
	b = open_disk("x.vmdk", BLK_READONLY | BLK_NO_BACKING); /* this layer alone, as asked */
	blk_close(b);
}

TEST(a_changed_parent_is_refused)
{
	struct blk *b;
	char got[6];

	create("base.vmdk", NULL, MiB, NULL);
	create("x.vmdk", NULL, 0, "base.vmdk");
	b = open_disk("base.vmdk", 0);
	CHECK_EQ(0, blk_write(b, "hello", 6, 0));
	blk_close(b);
	open_refused("x.vmdk", 0, "was changed since");
	open_refused("x.vmdk", BLK_READONLY, "was changed since");
	b = open_disk("x.vmdk", BLK_READONLY | BLK_RECOVER);
	CHECK_EQ(0, blk_read(b, got, 6, 0));
	CHECK_STR("hello", got);
	blk_close(b);
}

TEST(reading_does_not_change_the_cid)
{
	struct blk *b;
	char c;

	create("base.vmdk", NULL, MiB, NULL);
	create("x.vmdk", NULL, 0, "base.vmdk");
	b = open_disk("base.vmdk", 0);
	CHECK_EQ(0, blk_read(b, &c, 1, 0));
	CHECK_EQ(0, blk_flush(b));
	blk_close(b);
	blk_close(open_disk("x.vmdk", 0));
}

TEST(a_chain_that_bites_its_tail_is_refused)
{
	create("a.vmdk", NULL, MiB, NULL);
	create("b.vmdk", NULL, 0, "a.vmdk");
	create("c.vmdk", NULL, 0, "b.vmdk");
	rename_parent("b.vmdk", "\"a.vmdk\"", "\"c.vmdk\"");
	open_refused("c.vmdk", BLK_READONLY, "leads back");
}

TEST(a_parent_may_be_smaller)
{
	struct blk *b;
	uint8_t got[1024];

	create("base.vmdk", NULL, MiB, NULL);
	b = open_disk("base.vmdk", 0);
	memset(got, 7, sizeof(got));
	CHECK_EQ(0, blk_write(b, got, 512, MiB - 512));
	blk_close(b);
	create("x.vmdk", NULL, 2 * MiB, "base.vmdk");
	b = open_disk("x.vmdk", 0);
	CHECK_EQ(0, blk_read(b, got, 1024, MiB - 512));
	CHECK_EQ(7, got[511]);
	CHECK_EQ(0, got[512]);
	CHECK_EQ(0, blk_write(b, "x", 1, MiB - 1)); /* fills up from both sides of its end */
	CHECK_EQ(0, blk_read(b, got, 1024, MiB - 512));
	CHECK_EQ(7, got[510]);
	CHECK_EQ('x', got[511]);
	CHECK_EQ(0, got[512]);
	blk_close(b);
}

TEST(zeroes_hide_the_parent)
{
	static uint8_t buf[256 * 1024];
	struct blk *b;

	create("base.vmdk", NULL, MiB, NULL);
	b = open_disk("base.vmdk", 0);
	memset(buf, 0xbb, sizeof(buf));
	CHECK_EQ(0, blk_write(b, buf, sizeof(buf), 0));
	blk_close(b);
	create("x.vmdk", NULL, 0, "base.vmdk");
	b = open_disk("x.vmdk", 0);
	CHECK_EQ(0, blk_write_zeroes(b, 1000, 150000, true));
	CHECK_EQ(0, blk_read(b, buf, sizeof(buf), 0));
	CHECK_EQ(0xbb, buf[999]);
	CHECK_EQ(0, buf[1000]);
	CHECK_EQ(0, buf[150999]);
	CHECK_EQ(0xbb, buf[151000]);
	blk_close(b);
}

TEST(a_layer_is_emptied)
{
	uint64_t before;
	struct shadow s;
	struct blk *b;

	create("base.vmdk", NULL, 4 * MiB, NULL);
	create("x.vmdk", NULL, 0, "base.vmdk");
	before = size_of("x.vmdk");
	shadow_init(&s, 4 * MiB);
	b = open_disk("x.vmdk", 0);
	random_write(b, &s, 100, 3 * MiB);
	CHECK_EQ(0, blk_make_empty(b, NULL));
	memset(s.data, 0, s.size);
	same_content(b, &s);
	random_write(b, &s, MiB, 1000);
	same_content(b, &s);
	CHECK_EQ(0, blk_make_empty(b, NULL));
	blk_close(b);
	CHECK_EQ(before, size_of("x.vmdk"));
	check_clean("x.vmdk");
	shadow_free(&s);
}

TEST(an_emptied_layer_fits_its_parent_as_it_is_now)
{
	struct blk *x, *base;
	char got[6];

	create("base.vmdk", NULL, MiB, NULL);
	create("x.vmdk", "vmfsSparse", 0, "base.vmdk");
	x = open_disk("x.vmdk", BLK_NO_BACKING);
	base = open_disk("base.vmdk", 0);
	CHECK_EQ(0, blk_write(x, "hello", 6, 0));
	CHECK_EQ(0, blk_write(base, "hello", 6, 0)); /* a commit */
	CHECK_EQ(0, blk_make_empty(x, NULL));
	blk_close(x);
	blk_close(base);
	x = open_disk("x.vmdk", 0);
	CHECK_EQ(0, blk_read(x, got, 6, 0));
	CHECK_STR("hello", got);
	blk_close(x);
}

TEST(a_parent_is_named_anew)
{
	struct blk *b;
	char got[6];

	create("base.vmdk", NULL, MiB, NULL);
	create("other.vmdk", NULL, MiB, NULL);
	b = open_disk("other.vmdk", 0);
	CHECK_EQ(0, blk_write(b, "other", 6, 0));
	blk_close(b);
	create("x.vmdk", NULL, 0, "base.vmdk");
	b = open_disk("x.vmdk", 0);
	CHECK_EQ(0, blk_change_backing(b, "other.vmdk", "vmdk", NULL));
	blk_close(b);
	b = open_disk("x.vmdk", 0);
	CHECK_EQ(0, blk_read(b, got, 6, 0));
	CHECK_STR("other", got);
	CHECK_EQ(0, blk_change_backing(b, NULL, NULL, NULL));
	blk_close(b);
	b = open_disk("x.vmdk", 0);
	CHECK(!blk_backing(b));
	CHECK_EQ(0, blk_read(b, got, 6, 0));
	CHECK_EQ(0, got[0]);
	blk_close(b);
}

/* --- size -------------------------------------------------------------------------------------
 */

TEST(a_sparse_disk_grows)
{
	struct shadow s, more;
	struct blk *b;

	create("a.vmdk", NULL, ODD_SIZE, NULL);
	shadow_init(&s, ODD_SIZE);
	shadow_init(&more, 300 * MiB);
	b = open_disk("a.vmdk", 0);
	random_write(b, &s, 0, ODD_SIZE);
	CHECK_EQ(0, blk_resize(b, 300 * MiB)); /* more tables than the directory had room for */
	memcpy(more.data, s.data, s.size);
	same_content(b, &more);
	random_write(b, &more, 200 * MiB, 5000);
	CHECK_EQ(-ENOTSUP, blk_resize(b, MiB));
	CHECK_EQ(-EINVAL, blk_resize(b, 300 * MiB + 1));
	blk_close(b);
	b = open_disk("a.vmdk", BLK_READONLY);
	same_content(b, &more);
	blk_close(b);
	CHECK_EQ(0, check_disk("a.vmdk", 0).corruptions);
	check_disk("a.vmdk", BLK_FIX_LEAKS);
	shadow_free(&s);
	shadow_free(&more);
}

TEST(new_space_over_a_larger_parent_is_zeroes)
{
	uint8_t buf[512];
	struct blk *b;

	create("base.vmdk", NULL, 4 * MiB, NULL);
	b = open_disk("base.vmdk", 0);
	memset(buf, 9, sizeof(buf));
	CHECK_EQ(0, blk_write(b, buf, 512, 3 * MiB));
	CHECK_EQ(0, blk_write(b, buf, 512, MiB + 512));
	blk_close(b);
	create("x.vmdk", NULL, MiB + 512, "base.vmdk");
	b = open_disk("x.vmdk", 0);
	CHECK_EQ(0, blk_resize(b, 5 * MiB));
	CHECK_EQ(0, blk_read(b, buf, 512, 3 * MiB));
	CHECK_EQ(0, buf[0]);
	CHECK_EQ(0, blk_read(b, buf, 512, MiB + 512));
	CHECK_EQ(0, buf[0]);
	blk_close(b);
}

TEST(a_flat_disk_grows_and_shrinks)
{
	struct blk *b;
	char c = 1;

	create("a.vmdk", "monolithicFlat", MiB, NULL);
	b = open_disk("a.vmdk", 0);
	CHECK_EQ(0, blk_resize(b, 3 * MiB));
	CHECK_EQ(0, blk_read(b, &c, 1, 3 * MiB - 1));
	CHECK_EQ(0, c);
	blk_close(b);
	b = open_disk("a.vmdk", 0);
	CHECK_EQ(3 * MiB, blk_info(b)->size);
	CHECK_EQ(0, blk_resize(b, 2 * MiB));
	blk_close(b);
	b = open_disk("a.vmdk", 0);
	CHECK_EQ(2 * MiB, blk_info(b)->size);
	blk_close(b);
	CHECK_EQ(2 * MiB, size_of("a-flat.vmdk"));
}

/* --- packing ----------------------------------------------------------------------------------
 */

TEST(packed_grains_are_placed)
{
	static uint8_t grain[65536], packed[70000];
	struct shadow s;
	struct blk *b;
	size_t n;

	create("a.vmdk", "streamOptimized", ODD_SIZE, NULL);
	shadow_init(&s, ODD_SIZE);
	b = open_disk("a.vmdk", 0);
	CHECK(blk_can_pack(b));
	CHECK(blk_packs_in_order(b));
	CHECK(blk_pack_bound(b) <= sizeof(packed));
	for (uint64_t off = 0; off < s.size; off += 2 * sizeof(grain)) {
		uint64_t len = MIN(sizeof(grain), s.size - off);

		fill(s.data + off, len);
		CHECK_EQ(0, blk_pack(b, s.data + off, len, packed, sizeof(packed), &n));
		CHECK_EQ(0, blk_write_packed(b, packed, n, len, off));
	}
	same_content(b, &s);
	blk_close(b);
	b = open_disk("a.vmdk", BLK_READONLY);
	same_content(b, &s);
	blk_close(b);
	check_clean("a.vmdk");
	shadow_free(&s);
}

TEST(what_cannot_get_smaller_is_stored)
{
	static uint8_t grain[65536], packed[70000];
	struct blk *b;
	size_t n;

	create("a.vmdk", "streamOptimized", MiB, NULL);
	b = open_disk("a.vmdk", 0);
	for (size_t i = 0; i < sizeof(grain); i++)
		grain[i] = (uint8_t)(rnd() >> 24);
	CHECK_EQ(0, blk_pack(b, grain, sizeof(grain), packed, sizeof(packed), &n));
	CHECK_EQ(sizeof(grain) + 2 + 2 * 5 + 4, n);
	/* The same random 4 KiB again and again are not random. */
	for (size_t i = 4096; i < sizeof(grain); i++)
		grain[i] = grain[i - 4096];
	CHECK_EQ(0, blk_pack(b, grain, sizeof(grain), packed, sizeof(packed), &n));
	CHECK(n < 8192);
	blk_close(b);
}

TEST(only_streams_are_packed)
{
	struct blk *b;
	uint8_t packed[1024];
	size_t n;

	create("a.vmdk", NULL, MiB, NULL);
	b = open_disk("a.vmdk", 0);
	CHECK(blk_pack(b, "x", 1, packed, sizeof(packed), &n) < 0);
	CHECK(blk_write_packed(b, "x", 1, 1, 0) < 0);
	blk_close(b);
}

/* --- where things are -------------------------------------------------------------------------
 */

TEST(the_map_tells_where_grains_lie)
{
	static uint8_t buf[3 * 65536], got[65536];
	struct blk_map m;
	struct blk *b;

	fill(buf, sizeof(buf));
	create("a.vmdk", NULL, 64 * MiB, NULL);
	b = open_disk("a.vmdk", 0);
	CHECK_EQ(0, blk_write(b, buf, sizeof(buf), MiB));
	m = (struct blk_map){.len = 64 * MiB};
	CHECK_EQ(0, blk_map(b, 0, &m));
	CHECK_EQ(BLK_EXT_HOLE, m.what);
	CHECK_EQ(MiB, m.len);
	m = (struct blk_map){.len = 2 * MiB};
	CHECK_EQ(0, blk_map(b, MiB, &m));
	CHECK_EQ(BLK_EXT_DATA, m.what);
	CHECK_EQ(sizeof(buf), m.len);
	CHECK(m.host);
	CHECK_EQ(0, blk_read(m.host, got, sizeof(got), m.host_off + 65536));
	CHECK_EQ(0, memcmp(got, buf + 65536, sizeof(got)));
	m = (struct blk_map){.len = 60 * MiB};
	CHECK_EQ(0, blk_map(b, 2 * MiB, &m));
	CHECK_EQ(60 * MiB, m.len);
	blk_close(b);
}

TEST(packed_grains_have_no_place_to_look_at)
{
	struct blk_map m = {.len = MiB};
	struct blk *b;

	create("a.vmdk", "streamOptimized", MiB, NULL);
	b = open_disk("a.vmdk", 0);
	CHECK_EQ(0, blk_write(b, "x", 1, 0));
	CHECK_EQ(0, blk_write(b, "x", 1, 65536));
	CHECK_EQ(0, blk_map(b, 0, &m));
	CHECK_EQ(BLK_EXT_DATA, m.what);
	CHECK(m.compressed);
	CHECK(!m.host);
	CHECK_EQ(131072, m.len);
	blk_close(b);
}
