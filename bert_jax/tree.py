"""Names for the leaves of a parameter tree, such as `mlm/norm/scale`."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def flatten(tree: Any) -> dict[str, Any]:
    """Every leaf by its path, in the tree's own order.

    Args:
      tree: any pytree; a parameter tree is a nested dict.

    Returns:
      `{"layers/mlp/up/kernel": leaf, ...}`; fields and indices of tuples appear
      by name and number, as in `0/mu/mlm/bias`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose `flatten` this is."""
    whole: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = whole
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return whole


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function is also told the leaf's name, first.

    Args:
      function: called as `function(name, leaf, *leaves_of_rest)`.
      tree: any pytree, which decides the structure of the result.
      *rest: trees of the same structure.

    Returns:
      A tree of the function's results.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(_name(path), *leaves), tree, *rest
    )


def params_digest(params: Any) -> str:
    """A fingerprint that is equal exactly when the parameters are, bit for bit.

    It tells whether two runs ended in the same place, or whether two hosts agree,
    without shipping the parameters.

    Args:
      params: nested dict of arrays; if they are cut over several processes, all of
        these must call this.

    Returns:
      SHA-256 over names, dtypes, shapes and bytes in the order of the names, 64
      hexadecimal digits; it does not depend on how the arrays are sharded.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(params).items()):
        if not getattr(leaf, "is_fully_addressable", True):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{name} {array.dtype} {np.shape(leaf)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
