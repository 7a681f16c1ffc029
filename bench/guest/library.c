/* library.c - rows of other people's integer code: zlib and SQLite, as Debian builds them. */
#include "workload.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

static char text[128 << 10];

static void prepare_text(void)
{
	text_fill(text, sizeof(text), 9);
}

static uint64_t run_compress(uint64_t ops)
{
	static unsigned char packed[sizeof(text) + 4096];
	uLongf len = sizeof(packed);

	if (compress2(packed, &len, (unsigned char *)text, ops, 6) != Z_OK)
		die("zlib");
	return mix(len, crc32(0, packed, len));
}

static uint64_t run_inflate(uint64_t ops)
{
	static unsigned char packed[sizeof(text) + 4096], back[sizeof(text)];
	static uLongf len;
	uLongf got = sizeof(back);
	uint64_t sum = 0;

	if (!len) {
		len = sizeof(packed);
		compress2(packed, &len, (unsigned char *)text, sizeof(text), 6);
	}
	for (uint64_t done = 0; done < ops; done += sizeof(text)) {
		if (uncompress(back, &got, packed, len) != Z_OK)
			die("zlib");
		sum = mix(sum, mix_bytes(got, back + done / 2, 64));
	}
	return sum;
}

/* --- SQLite --------------------------------------------------------------------------------------
 */

static void sql(sqlite3 *db, const char *text_of_it)
{
	if (sqlite3_exec(db, text_of_it, NULL, NULL, NULL) != SQLITE_OK) {
		fprintf(stderr, "workload: sqlite: %s\n", sqlite3_errmsg(db));
		exit(1);
	}
}

static void sql_insert(sqlite3 *db, uint64_t rows)
{
	sqlite3_stmt *st;
	uint64_t seed = 77;
	char word[32];

	sqlite3_prepare_v2(db, "insert into t(k, grp, word) values(?, ?, ?)", -1, &st, NULL);
	for (uint64_t i = 0; i < rows; i++) {
		uint64_t r = random_next(&seed);

		snprintf(word, sizeof(word), "word-%llu", (unsigned long long)(r >> 40));
		sqlite3_bind_int64(st, 1, r >> 8 & 0xffffff);
		sqlite3_bind_int64(st, 2, r >> 32 & 15);
		sqlite3_bind_text(st, 3, word, -1, SQLITE_TRANSIENT);
		sqlite3_step(st);
		sqlite3_reset(st);
	}
	sqlite3_finalize(st);
}

static uint64_t sql_sum(sqlite3 *db, const char *query)
{
	sqlite3_stmt *st;
	uint64_t sum = 0;

	if (sqlite3_prepare_v2(db, query, -1, &st, NULL) != SQLITE_OK)
		die(query);
	while (sqlite3_step(st) == SQLITE_ROW)
		for (int c = 0; c < sqlite3_column_count(st); c++)
			sum = mix(sum, sqlite3_column_int64(st, c));
	sqlite3_finalize(st);
	return sum;
}

static uint64_t run_sqlite(uint64_t ops)
{
	sqlite3 *db;
	uint64_t sum;

	if (sqlite3_open(":memory:", &db) != SQLITE_OK)
		die("sqlite");
	sql(db, "create table t(id integer primary key, k integer, grp integer, word text);"
		"create index t_k on t(k); begin");
	sql_insert(db, ops);
	sql(db, "commit; update t set k = k + 1 where grp = 3; delete from t where grp = 9");
	sum = sql_sum(db, "select grp, count(*), sum(k), sum(length(word)) from t group by grp");
	sum = mix(sum,
		  sql_sum(db, "select a.id + b.k from t a join t b on a.k = b.k + 1 order by 1"));
	sum = mix(sum,
		  sql_sum(db, "select id from t where word like '%7%9%' order by word limit 50"));
	sqlite3_close(db);
	return sum;
}

const struct row library_rows[] = {
	{"compress", "byte compressed by zlib", sizeof(text), prepare_text, run_compress, NULL},
	{"inflate", "byte decompressed by zlib", 4 * sizeof(text), prepare_text, run_inflate, NULL},
	{"sqlite", "row inserted and asked for", 1000, NULL, run_sqlite, NULL},
	{0},
};
