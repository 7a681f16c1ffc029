# The shell row: loops, functions, words and numbers in the shell itself, and some small programs.
# $1 is busybox.
bb=$1
fib() {
	if [ "$1" -lt 2 ]; then
		r=$1
	else
		local n=$1
		fib $((n - 1))
		local a=$r
		fib $((n - 2))
		r=$((a + r))
	fi
}
fib 12
echo "fib $r"
i=0 sum=0
while [ $i -lt 3000 ]; do
	case $((i % 7)) in
	0) sum=$((sum + i)) ;;
	1 | 2) sum=$((sum ^ i)) ;;
	*) sum=$((sum + 1)) ;;
	esac
	i=$((i + 1))
done
echo "sum $sum"
words=
for w in alpha beta gamma delta epsilon zeta eta theta; do
	words="${w%a}:$words${w#?}"
done
echo "$words"
for n in 1 2 3 4; do
	$bb seq 1 $((n * 50)) | $bb sed -e 's/1/one/g' -e 's/2$/two/' | $bb sort | $bb md5sum
done
$bb awk 'BEGIN { for (i = 0; i < 3000; i++) { k = (i * 7919) % 509; c[k] += i; s = s substr("abcdefgh", i % 8, 1) }
	t = 0; for (k in c) t += c[k] % 97; print t, length(s) }'
