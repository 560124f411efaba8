"""Tasks: what a model is asked to learn, as pure functions.

The training loop, the step and the evaluation see a `Task` and nothing else of
the model.
"""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bert_jax import config, metrics, optim
from bert_jax.model import Batch

Pairs = dict[str, tuple[jax.Array, jax.Array]]


class Parts(NamedTuple):
    """What the loss of a task is made of, for those that need more of the same pass.

    Attributes:
      bert: the Flax module.
      method: of it, (batch, rng or None) -> its logits.
      pairs: (logits, batch) -> the pairs of the loss.
      choices: (logits, batch) -> name of each term -> logits [..., C] of what is
        chosen from, or C = 1 numbers, and float32 weights [...].
    """

    bert: Any
    method: str
    pairs: Callable[[Any, Batch], Pairs]
    choices: Callable[[Any, Batch], Pairs]

    def loss(
        self, params: dict[str, Any], batch: Batch, rng: jax.Array | None
    ) -> Pairs:
        """The `loss` of a task."""
        apply = functools.partial(self.bert.apply, method=self.method)
        return self.pairs(apply({"params": params}, batch, rng), batch)


class Task(NamedTuple):
    """Pure functions of parameters and batches.

    Attributes:
      init: rng -> parameters, a nested plain dict of float32 arrays.
      loss: (params, batch, rng or None, *given) -> name -> (sum, weight), float32
        scalars. None is no dropout. Weights depend on the batch alone.
      terms: the names whose ratios add up to the training loss.
      predict: (params, batch) -> name -> logits.
      score: name -> (sum, weight) over an evaluation -> its final metrics.
      best: the metric by which the best checkpoint is chosen.
      largest: whether the best is the largest.
      parts: what `loss` is made of.
      factors: of terms that count other than once.
      given: trees of arrays, on their devices, that training gives to `loss` beside
        the rest; scoring does not. They are no part of the state.
    """

    init: Callable[[jax.Array], dict[str, Any]]
    loss: Callable[..., Pairs]
    terms: tuple[str, ...]
    predict: Callable[[dict[str, Any], Batch], Batch]
    score: Callable[[Mapping[str, tuple[float, float]]], dict[str, float]]
    best: str = "eval_mlm_loss"
    largest: bool = False
    parts: Parts | None = None
    factors: Mapping[str, float] = types.MappingProxyType({})
    given: tuple[Any, ...] = ()

    def total(self, ratios: Mapping[str, jax.Array]) -> jax.Array:
        """The training loss, of the ratio of each term."""
        parts = [self.factors.get(name, 1.0) * ratios[name] for name in self.terms]
        return sum(parts, jnp.zeros(()))


def frozen(task: Task, settings: config.Optim) -> Task:
    """The task whose loss has no gradient to the parameters that `settings` freeze.

    Raises:
      UserError: there are no such parameters, or no others.
    """
    if not settings.freeze and not settings.freeze_layers:
        return task
    optim.rate_factors(settings, jax.eval_shape(task.init, jax.random.key(0)))

    def loss(params: dict[str, Any], *rest: Any) -> Pairs:
        return task.loss(optim.hold(settings, params), *rest)

    return task._replace(loss=loss)


def ratios(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The `score` of most tasks: each pair's ratio, its name after `eval_`."""
    return {f"eval_{k}": float(v) for k, v in metrics.divide(sums).items()}
