"""Rows as both directions of a recurrent mixer meet them, one position after another.

Axis letter beside those of `layers`: R direction, forwards first.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Shaped


def directions(x: Shaped[Array, "L ..."]) -> Shaped[Array, "L 2 ..."]:
    """Puts the reversed rows beside the rows."""
    return jnp.stack([x, x[::-1]], 1)


def goes_on(number: Int32[Array, "L R B"]) -> Bool[Array, "L R B"]:
    """Whether a position belongs to the same example as the one met before it."""
    first = jnp.zeros_like(number[:1], bool)
    return jnp.concatenate([first, number[1:] == number[:-1]])
