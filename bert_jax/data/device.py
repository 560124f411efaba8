"""From arrays on the host to arrays on the mesh, two batches ahead."""

import collections
from collections.abc import Iterator

import jax
from jax.sharding import NamedSharding

from bert_jax.data.examples import Batch


def to_device(batch: Batch, sharding: NamedSharding) -> dict[str, jax.Array]:
    """Places this host's rows of a batch; the result is the global batch."""
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def host_part() -> tuple[int, int]:
    """(index, count) of this process among those that share a global batch."""
    return jax.process_index(), jax.process_count()


def prefetch(
    batches: Iterator[Batch], sharding: NamedSharding, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Yields batches on the devices, having started the transfer of the next ones."""
    waiting: collections.deque[dict[str, jax.Array]] = collections.deque()
    for batch in batches:
        waiting.append(to_device(batch, sharding))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
