"""The pieces of BERT's optimizers that optax does not have."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bert_jax import tree
from bert_jax.model import parts


def decays(params: Any) -> Any:
    """Which parameters weight decay acts on: all but biases and LayerNorm scales.

    In a state space neither the logarithms of its rates nor its skip are drawn to 0,
    as in the code of Gu and Dao 2023.

    Args:
      params: nested dict of arrays, or of their shapes.

    Returns:
      The same tree of bool. (Devlin et al. 2019, appendix A.2, and the list
      `exclude_from_weight_decay` of the original code.)
    """
    kept = "bias", "scale", "rate_log", "skip"
    return tree.map_named(lambda name, _: not name.endswith(kept), params)


class MomentsState(NamedTuple):
    """Running means of the gradient and of its square, shaped as the params."""

    mu: Any
    nu: Any


def scale_by_uncorrected_adam(
    beta1: float, beta2: float, epsilon: float
) -> optax.GradientTransformation:
    """Adam without bias correction, the update of the original BERT code.

    The moments start at zero and nothing makes up for it, so that early updates
    are larger than Adam's by up to `(1 - beta1) / sqrt(1 - beta2)`.

    Args:
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      epsilon: added to the root of the second moment.

    Returns:
      The transformation; its state is `MomentsState`.
    """

    def init(params: optax.Params) -> MomentsState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return MomentsState(mu=zeros, nu=jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: optax.Updates, state: Any, params: Any = None
    ) -> tuple[optax.Updates, MomentsState]:
        del params
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, updates)
        nu = jax.tree.map(
            lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), state.nu, updates
        )
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu)
        return scaled, MomentsState(mu, nu)

    return optax.GradientTransformation(init, update)


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """Shrinks all gradients together where their joint norm exceeds `largest`.

    By one factor for all elements, which XLA works into what reads the gradient.
    optax's divides each, an array of its own to write and to compile for each shape.

    Args:
      largest: norm that is left alone.

    Returns:
      The transformation, which keeps no state. Pascanu et al. 2013, algorithm 1.
    """

    def update(updates: optax.Updates, params: Any = None) -> optax.Updates:
        del params
        factor = jnp.minimum(1.0, largest / optax.tree.norm(updates))
        return jax.tree.map(lambda gradient: gradient * factor, updates)

    return optax.stateless(update)


def scale_by_layer_trust_ratio() -> optax.GradientTransformation:
    """LAMB's trust ratio |param| / |update|, one for each layer's each parameter.

    Parameters under `layers/` hold all layers along their first axis: each layer
    gets a ratio of its own, as if it were a separate array. Parameters without
    weight decay keep their update, as in the authors' code.

    Returns:
      The transformation, which keeps no state and needs `params`.

    You et al. 2019, "Large batch optimization for deep learning", algorithm 2.
    """

    def scale(name: str, update: jax.Array, param: jax.Array, decay: bool) -> jax.Array:
        if not decay:
            return update
        first = 1 if parts.stacked(name) else 0
        axes = tuple(range(first, param.ndim))
        size = jnp.sqrt(jnp.sum(jnp.square(param), axes, keepdims=True))
        change = jnp.sqrt(jnp.sum(jnp.square(update), axes, keepdims=True))
        usable = (size > 0) & (change > 0)
        return update * jnp.where(usable, size / jnp.where(usable, change, 1.0), 1.0)

    def update(updates: optax.Updates, params: Any) -> optax.Updates:
        return tree.map_named(scale, updates, params, decays(params))

    return optax.stateless(update)
