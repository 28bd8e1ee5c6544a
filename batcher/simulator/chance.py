"""Chance that can be repeated: a number from a hash, not from a generator with a state."""

from hashlib import blake2b


def chance(seed: int, purpose: bytes, request: bytes, number: int = 0) -> float:
    """Return 0 <= x < 1: always the same for the same arguments, whatever else happened before."""
    text = b"%d %d %b %b" % (seed, number, purpose, request)
    return int.from_bytes(blake2b(text, digest_size=6).digest(), "big") / (1 << 48)
