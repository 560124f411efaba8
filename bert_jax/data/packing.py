"""Several examples to a row: best fit, longest first, on the lengths' histogram.

Krell et al. 2021, "Efficient sequence packing without cross-contamination",
pack the histogram of lengths instead of the examples: all examples of one
length go into all rows of one remaining space at once, so that the time depends
on the number of distinct lengths and not on the number of examples.
"""

import numpy as np
from numpy.typing import NDArray


def pack(
    length: NDArray[np.int64], capacity: int, most: int, order: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Assigns examples to rows.

    Args:
      length: [E] tokens of each example, 1 to capacity.
      capacity: tokens in a row.
      most: examples that may share a row.
      order: [E] a permutation; it decides which of equally long examples meet.

    Returns:
      [R, most] example numbers, -1 where a slot is empty. Every example appears
      once and no row is over-full.
    """
    by_length = order[np.argsort(-length[order], kind="stable")]
    count = np.bincount(length, minlength=capacity + 1)
    rows = np.full((len(length), most), -1, np.int32)
    depth = np.zeros(len(length), np.int32)
    spaces: list[list[NDArray[np.int64]]] = [[] for _ in range(capacity + 1)]
    used = done = 0
    for size in np.flatnonzero(count)[::-1].tolist():
        waiting = by_length[done : done + count[size]]
        done += len(waiting)
        space = size
        while len(waiting):
            while space <= capacity and not spaces[space]:
                space += 1
            if space > capacity:
                # A capacity holding several of this size is reused at once.
                fresh = -(-len(waiting) // min(most, capacity // size))
                spaces[capacity].append(np.arange(used, used + fresh))
                used += fresh
                space = capacity
            found = spaces[space].pop()
            target, rest = found[: len(waiting)], found[len(waiting) :]
            if len(rest):
                spaces[space].append(rest)
            rows[target, depth[target]] = waiting[: len(target)]
            depth[target] += 1
            waiting = waiting[len(target) :]
            target = target[depth[target] < most]
            left = space - size
            if len(target) and left:
                spaces[left].append(target)
            if left >= size:
                space = min(space, left)
    return rows[:used]
