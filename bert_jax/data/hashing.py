"""Counter-based random bits: the same inputs give the same bits, anywhere.

Every random choice of the data pipeline is `mix` of what it is for, so that a
batch depends on (seed, step) alone and never on what was drawn before it.
Source: the splitmix64 finaliser, Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators".
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1

Bits = NDArray[np.uint64]


def mix(counter: Bits) -> Bits:
    """64 random-looking bits for each uint64 counter, of the same shape."""
    bits = counter * np.uint64(_GOLDEN)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits


def key(*parts: int) -> np.uint64:
    """One 64-bit key from a sequence of whole numbers (seed, purpose, ...)."""
    state = 0
    for part in parts:
        word = np.array([(state + part + 1) & _WORD], np.uint64)
        state = int(mix(word)[0])
    return np.uint64(state)


def draw(base: np.uint64, counter: NDArray) -> Bits:
    """Bits for each counter under a key; counters are non-negative integers."""
    return mix(mix(np.asarray(counter).astype(np.uint64)) ^ base)


def uniform(bits: Bits) -> NDArray[np.float64]:
    """Numbers in [0, 1) from random bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(bits: Bits, limit: NDArray | np.integer) -> NDArray[np.int64]:
    """Whole numbers in [0, limit) from random bits, for limits under 2**31."""
    high = (bits >> np.uint64(33)) * np.asarray(limit).astype(np.uint64)
    return (high >> np.uint64(31)).astype(np.int64)
