/* mkvmfs - make VMFS volumes for tests from a script; --help explains. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

static const char HELP[] =
	"Usage: mkvmfs [SCRIPT|-] [-m MANIFEST]      make what the script says\n"
	"       mkvmfs pattern SEED OFFSET LENGTH    bytes of a pattern, to stdout\n"
	"       mkvmfs hash NAME...                  hashes of names in a VMFS6 directory\n"
	"       mkvmfs regenerate VOLUME             make the metadata of a bare volume that ESXi "
	"made\n"
	"                                            again from its fields, and compare; prints "
	"TAP\n"
	"\n"
	"A script has a command on each line; # begins a comment, \"...\" keeps blanks, \\n is a "
	"newline.\n"
	"Sizes may end in K, M, G or T.\n"
	"\n"
	"format file=IMAGE [size=512M] [file=IMAGE2 size=...]...   an empty volume, in 1 or more "
	"extents\n"
	"    version=3|5|6      VMFS3, VMFS5 (default), VMFS6\n"
	"    block=1M|2M|4M|8M  file block (VMFS3 and VMFS5)\n"
	"    label=TEXT         volume label (test)\n"
	"    seed=N             of the UUIDs (1)\n"
	"    disk=none|gpt|mbr  a bare partition (default), or whole disks with a partition at 1 "
	"MiB\n"
	"    sparse-clusters    VMFS5: 16 sub-blocks in a cluster; superblock says \"not dense\"\n"
	"    upgraded           VMFS5: not dense, and .pb2.sf and .sdd.sf are where only the "
	"superblock\n"
	"                       says, as on a volume that was VMFS3\n"
	"    local              VMFS-L magic and LVM flag\n"
	"    live               one heartbeat is in use, with a journal\n"
	"    keep               the image keeps what it has where nothing is written\n"
	"    A second format is a quick format over the first volume; the manifest then has the "
	"old\n"
	"    one under \"older\", with what of it is still whole.\n"
	"mkdir PATH\n"
	"file PATH [text=T|host=FILE|pattern=SEED] [size=N] "
	"[piece=OFFSET:LENGTH:SEED[t][c][l]]...\n"
	"    layout=auto|resident|sub|direct|single|double   (auto: the smallest that can hold "
	"it)\n"
	"    pb2                pointer blocks from .pb2.sf\n"
	"    tbz cow lfb        to be zeroed, copy-on-write, large file blocks (also t c l of a "
	"piece)\n"
	"    thin               blocks of zeros become holes\n"
	"    reuse              take the lowest free blocks and descriptor, as after a delete\n"
	"    reuse-blocks       the same, but not a freed descriptor\n"
	"    scatter            no two blocks are neighbours\n"
	"    mode=N\n"
	"symlink PATH TARGET\n"
	"rdm PATH [size=N] [id=SCSI-ID]\n"
	"fill DIR [count=N] [prefix=P] [size=N]     many files; not listed one by one in the "
	"manifest\n"
	"                                           unless there are fewer than 5000\n"
	"collide DIR [count=N] [prefix=P]           VMFS6: empty files with one hash slot\n"
	"delete PATH [grade=1|2|3] [unmap] [dirent=address|zero|compact]\n"
	"    grade 1            descriptor intact, only bitmaps say free\n"
	"    grade 2            address array zero; length, ZLA, block count and pointer blocks "
	"stay\n"
	"    grade 3            descriptor and pointer blocks zero\n"
	"    unmap              the file blocks read as zeros\n"
	"    dirent             address: name stays (VMFS3/5: its address is 0; VMFS6: its slot is "
	"free;\n"
	"                       default of grades 1, 2); zero: record wiped (default of grade 3);\n"
	"                       compact: the last record moves into its place\n"
	"stale PATH             an older copy of the descriptor (half the length) in a free block\n"
	"journal PATH           a copy of the descriptor in the journal\n"
	"flush                  write all metadata now (done at the end anyway)\n";

static char *read_all(FILE *f)
{
	size_t cap = 1 << 16, len = 0, n;
	char *s = malloc(cap);

	while (s && (n = fread(s + len, 1, cap - len - 1, f)) > 0) {
		len += n;
		if (len + 1 == cap)
			s = realloc(s, cap *= 2);
	}
	if (s)
		s[len] = 0;
	return s;
}

static int pattern(char **argv)
{
	uint64_t seed = strtoull(argv[0], NULL, 0), off = strtoull(argv[1], NULL, 0);
	uint64_t len = strtoull(argv[2], NULL, 0);
	static char buf[1 << 16];

	while (len) {
		uint64_t n = len < sizeof(buf) ? len : sizeof(buf);

		mkfs_pattern(seed, off, buf, n);
		if (fwrite(buf, 1, n, stdout) != n)
			return 1;
		off += n;
		len -= n;
	}
	return fflush(stdout) ? 1 : 0;
}

static int hashes(char **names)
{
	for (; *names; names++) {
		uint64_t h = mkfs_name_hash(*names);

		printf("%s %#llx %llu %llu\n", *names, (unsigned long long)h,
		       (unsigned long long)h % 16001, (unsigned long long)h % 15973);
	}
	return 0;
}

static FILE *open_or_die(const char *path, const char *mode)
{
	FILE *f = fopen(path, mode);

	if (!f) {
		fprintf(stderr, "mkvmfs: %s: cannot open it\n", path);
		exit(1);
	}
	return f;
}

static int run(const char *script, const char *manifest)
{
	FILE *in = script ? open_or_die(script, "r") : stdin;
	FILE *out = manifest ? open_or_die(manifest, "w") : NULL;
	char *text = read_all(in);

	mkfs_script(text ? text : "", out);
	free(text);
	if (in != stdin)
		fclose(in);
	return out && fclose(out) ? 1 : 0;
}

int main(int argc, char **argv)
{
	const char *script = NULL, *manifest = NULL;

	if (argc > 1 && !strcmp(argv[1], "--help"))
		return fputs(HELP, stdout) == EOF;
	if (argc == 5 && !strcmp(argv[1], "pattern"))
		return pattern(argv + 2);
	if (argc > 2 && !strcmp(argv[1], "hash"))
		return hashes(argv + 2);
	if (argc == 3 && !strcmp(argv[1], "regenerate"))
		return mkfs_regenerate(argv[2]);
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "-m") && i + 1 < argc)
			manifest = argv[++i];
		else if (strcmp(argv[i], "-"))
			script = argv[i];
	}
	return run(script, manifest);
}
