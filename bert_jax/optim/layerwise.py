"""Parameters that learn more slowly the lower they lie, or not at all."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax import config, tree
from bert_jax.errors import UserError
from bert_jax.model import parts


def rate_factors(settings: config.Optim, params: Any) -> Any:
    """What each parameter's learning rate is multiplied with.

    It is 1 for heads and pooler, and `layer_decay` times that of the next depth up for
    each layer, the norm after the last one with that layer, and the embeddings with the
    map that follows them; 0 for what is frozen.

    Args:
      settings: the `optim` group of the config.
      params: nested dict of arrays, or of their shapes.

    Returns:
      The same tree of float32 [], or of [N, 1, ...] where all layers lie along the
      first axis.

    Raises:
      UserError: there are fewer layers than `freeze_layers`, `freeze` fits no
        parameter, or all are frozen.

    Howard and Ruder 2018, section 3.2, with one factor for each layer.
    """
    named = tree.flatten(params)
    layers = [leaf for name, leaf in named.items() if parts.stacked(name)]
    count = layers[0].shape[0] if layers else 0
    depth = np.arange(count + 2, dtype=np.float32)
    of_depth = settings.layer_decay ** (count + 1 - depth)
    of_depth *= (depth > settings.freeze_layers) | (settings.freeze_layers == 0)

    def factor(name: str, leaf: Any) -> np.ndarray:
        if settings.freeze and re.search(settings.freeze, name):
            return np.zeros((), np.float32)
        own = parts.depth(name, count)
        if own is None:
            of_layers = of_depth[1 : count + 1].astype(np.float32)
            return of_layers.reshape(-1, *[1] * (leaf.ndim - 1))
        return np.asarray(of_depth[own], np.float32)

    if count and settings.freeze_layers > count:
        raise UserError(
            f"config.optim.freeze_layers={settings.freeze_layers}: the model has "
            f"{count} layers"
        )
    if settings.freeze and not any(re.search(settings.freeze, n) for n in named):
        begins = dict.fromkeys("/".join(name.split("/")[:2]) for name in named)
        raise UserError(
            f"config.optim.freeze={settings.freeze}: fits none of the parameters, "
            f"which are {', '.join(begins)}"
        )
    factors = tree.map_named(factor, params)
    if named and not any(f.any() for f in jax.tree.leaves(factors)):
        raise UserError(
            "config.optim.freeze and freeze_layers leave nothing to be trained; "
            "freeze less"
        )
    return factors


def hold(settings: config.Optim, params: Any) -> Any:
    """The parameters, without a gradient to those that are frozen.

    Nothing is computed for the gradient of a part that is frozen as a whole.
    """

    def one(leaf: jax.Array, factor: np.ndarray) -> jax.Array:
        if factor.all():
            return leaf
        held = jax.lax.stop_gradient(leaf)
        return jnp.where(factor > 0, leaf, held) if factor.any() else held

    return jax.tree.map(one, params, rate_factors(settings, params))


def scale_by_layer(settings: config.Optim) -> optax.GradientTransformation:
    """Multiplies updates with `rate_factors`; keeps no state, needs `params`.

    It comes last: a parameter of -0 stays so if -0, not 0, is added.
    """

    def one(update: jax.Array, factor: np.ndarray) -> jax.Array:
        if (factor == 1).all():
            return update
        return jnp.where(factor > 0, update * factor, -0.0)

    def update(updates: optax.Updates, params: Any) -> optax.Updates:
        return jax.tree.map(one, updates, rate_factors(settings, params))

    return optax.stateless(update)
