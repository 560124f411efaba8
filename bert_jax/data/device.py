"""From arrays on the host to arrays on the mesh, two batches ahead."""

import collections
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from bert_jax.data.examples import Batch

Part = tuple[int, int]


def host_part(sharding: NamedSharding) -> Part:
    """Which rows of a global batch this process has to read.

    Args:
      sharding: of a batch.

    Returns:
      (index, count): the rows lie in the block `index` of `count` equal blocks. Where
      the devices of a process are not neighbours on the mesh, (0, 1): all rows.
    """
    devices = sharding.num_devices
    blocks = {
        device: at[0].indices(devices)[0]
        for device, at in sharding.devices_indices_map((devices,)).items()
    }
    order = sorted(set(blocks.values()))
    here = sharding.addressable_devices
    mine = sorted({order.index(blocks[device]) for device in here})
    index, rest = divmod(mine[0], len(mine))
    neighbours = mine == list(range(mine[0], mine[0] + len(mine)))
    even = neighbours and not rest and len(order) % len(mine) == 0
    return (index, len(order) // len(mine)) if even else (0, 1)


def padded(batch: Batch, sharding: NamedSharding) -> Batch:
    """Return a batch whose rows the devices divide, with empty rows at the end.

    Args:
      batch: all rows of a batch; zeros are padding without an example or a weight.
      sharding: sharding of the rows.
    """
    # What one device of them all is given of so many rows.
    (share,) = sharding.shard_shape((sharding.num_devices,))
    unit = sharding.num_devices // share
    more = -len(next(iter(batch.values()))) % unit

    def fill(rows: np.ndarray) -> np.ndarray:
        return np.pad(rows, [(0, more)] + [(0, 0)] * (rows.ndim - 1))

    return {name: fill(rows) for name, rows in batch.items()} if more else batch


def to_device(
    batch: Batch, sharding: NamedSharding, part: Part = (0, 1)
) -> dict[str, jax.Array]:
    """Places this host's rows of a batch; the result is the global batch.

    Args:
      batch: rows of `part`.
      sharding: of the global batch.
      part: from `host_part`.

    Returns:
      Arrays of all rows, of which each process holds its own.
    """

    def place(rows: np.ndarray) -> jax.Array:
        size, first = len(rows) * part[1], len(rows) * part[0]

        def read(at: Any) -> np.ndarray:
            start, stop, _ = at[0].indices(size)
            return rows[start - first : stop - first]

        return jax.make_array_from_callback((size, *rows.shape[1:]), sharding, read)

    return {name: place(array) for name, array in batch.items()}


def prefetch(
    batches: Iterator[Batch], sharding: NamedSharding, part: Part = (0, 1)
) -> Iterator[dict[str, jax.Array]]:
    """Yields batches on the devices, having started the transfer of the next two."""
    waiting: collections.deque[dict[str, jax.Array]] = collections.deque()
    for batch in batches:
        waiting.append(to_device(batch, sharding, part))
        if len(waiting) > 2:
            yield waiting.popleft()
    yield from waiting
