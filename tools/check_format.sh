#!/bin/sh
# Fail if clang-format would change a file.  The version is fixed: others format differently.
cf=$(command -v clang-format-14 || command -v clang-format) || {
	echo "clang-format is missing: apt-get install clang-format-14" >&2
	exit 1
}
files=$(git ls-files '*.c' '*.h')
bad=$(printf '%s\n' "$files" | xargs "$cf" --dry-run 2>&1 | grep -c 'warning:')
echo "format: $(printf '%s\n' "$files" | wc -l) files checked, $bad places to mend"
[ "$bad" -eq 0 ] || {
	printf '%s\n' "$files" | xargs "$cf" --dry-run 2>&1 | grep 'warning:' | cut -d: -f1 | sort -u
	echo "mend with: $cf -i FILE"
	exit 1
}
