"""Random numbers by what they are for: Philox4x32-10, written from its definition."""

CORRUPT, TIME = 4, 5
WORD = 0xFFFFFFFF
# Counter, key and result of Philox4x32-10: kat_vectors of Random123.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def philox(counter, key):
    """Philox4x32 with 10 rounds (Salmon et al., SC 2011): four words from a counter of four and a key of two."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q & WORD, (p >> 32) ^ d ^ m, p & WORD
        k, m = (k + 0x9E3779B9) & WORD, (m + 0xBB67AE85) & WORD
    return [a, b, c, d]


def check_philox():
    for words in KNOWN_ANSWERS:
        counter, key, expected = ([int(word, 16) for word in row.split()] for row in words)
        if philox(counter, key) != expected:
            raise SystemExit(f"the Philox of this script is wrong: counter {words[0]}, key {words[1]}")


class Random:
    """Uniform numbers in [0, 1) by what they are for."""

    def __init__(self, seed):
        self.key = [seed & WORD, seed >> 32]

    def uniform(self, purpose, sequence, step, position):
        return (philox([position, step, sequence, purpose], self.key)[0] >> 8) / 2**24
