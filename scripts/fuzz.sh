#!/bin/bash
# Run every fuzz target for so many seconds: scripts/fuzz.sh BUILD SECONDS [TARGET...]
# A finding stays in BUILD/fuzz-findings/TARGET; add it to tests/fuzz/seeds/TARGET with its fix.
set -u
build=$1 seconds=$2
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)
targets=${*:-$(cd "$build/tests/fuzz" && ls | sed -n 's/^fuzz_\([a-z0-9_]*\)$/\1/p')}
passed=0 failed=0
for t in $targets; do
	corpus=$build/fuzz-corpus/$t findings=$build/fuzz-findings/$t
	mkdir -p "$corpus" "$findings"
	case $t in # long inputs from the start, where they are code
	cpu) sizes="-len_control=0 -max_len=1500" ;;
	*) sizes= ;;
	esac
	echo "fuzz: $t for $seconds s"
	if "$build/tests/fuzz/fuzz_$t" $sizes -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
		-artifact_prefix="$findings/" "$corpus" "$here/tests/fuzz/seeds/$t" >"$findings/log" 2>&1; then
		passed=$((passed + 1))
		tail -n 1 "$findings/log"
	else
		failed=$((failed + 1))
		tail -n 25 "$findings/log"
	fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
