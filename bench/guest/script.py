"""The Python row: objects, dictionaries, strings, sorting; nothing but what is built in."""


class Node:
    def __init__(self, key):
        self.key, self.left, self.right = key, None, None

    def insert(self, key):
        node = self
        while True:
            side = 'left' if key < node.key else 'right'
            child = getattr(node, side)
            if child is None:
                setattr(node, side, Node(key))
                return
            node = child

    def depth(self):
        return 1 + max(n.depth() if n else 0 for n in (self.left, self.right))


def numbers(seed, count):
    for _ in range(count):
        seed = (seed * 1103515245 + 12345) % (1 << 31)
        yield seed >> 8


def words():
    counts = {}
    text = ' '.join(f'w{n % 83}x{n % 7}' for n in numbers(3, 4000))
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]


def primes(limit):
    sieve = bytearray([1]) * limit
    for n in range(2, int(limit ** 0.5) + 1):
        if sieve[n]:
            sieve[n * n::n] = bytes(len(range(n * n, limit, n)))
    return sum(sieve) - 2


def queens(n, row=0, cols=0, left=0, right=0):
    if row == n:
        return 1
    total, free = 0, ~(cols | left | right) & ((1 << n) - 1)
    while free:
        bit = free & -free
        free ^= bit
        total += queens(n, row + 1, cols | bit, (left | bit) << 1, (right | bit) >> 1)
    return total


tree = Node(1 << 22)
for n in numbers(7, 1500):
    tree.insert(n)
print(tree.depth(), words(), primes(20000), queens(6))
print(sum(x * 0.5 for x in numbers(11, 3000)), pow(3, 2000) % 1000007, str(7 ** 900)[:20])
