"""Tasks: what a model is asked to learn, as five pure parts.

The training loop, the step and the evaluation see a `Task` and nothing else of
the model.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from bert_jax import config, metrics, optim
from bert_jax.model import Batch

Pairs = dict[str, tuple[jax.Array, jax.Array]]


class Task(NamedTuple):
    """Pure functions of parameters and batches.

    Attributes:
      init: rng -> parameters, a nested plain dict of float32 arrays.
      loss: (params, batch, rng or None) -> name -> (sum, weight), float32 scalars.
        None is no dropout. Weights depend on the batch alone.
      terms: the names whose ratios add up to the training loss.
      predict: (params, batch) -> name -> logits.
      score: name -> (sum, weight) over an evaluation -> its final metrics.
      best: the metric by which the best checkpoint is chosen.
      largest: whether the best is the largest.
    """

    init: Callable[[jax.Array], dict[str, Any]]
    loss: Callable[[dict[str, Any], Batch, jax.Array | None], Pairs]
    terms: tuple[str, ...]
    predict: Callable[[dict[str, Any], Batch], Batch]
    score: Callable[[Mapping[str, tuple[float, float]]], dict[str, float]]
    best: str = "eval_mlm_loss"
    largest: bool = False


def frozen(task: Task, settings: config.Optim) -> Task:
    """The task whose loss has no gradient to the parameters that `settings` freeze.

    Raises:
      UserError: there are no such parameters, or no others.
    """
    if not settings.freeze and not settings.freeze_layers:
        return task
    optim.rate_factors(settings, jax.eval_shape(task.init, jax.random.key(0)))

    def loss(params: dict[str, Any], batch: Batch, rng: jax.Array | None) -> Pairs:
        return task.loss(optim.hold(settings, params), batch, rng)

    return task._replace(loss=loss)


def ratios(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The `score` of most tasks: each pair's ratio, its name after `eval_`."""
    return {f"eval_{k}": float(v) for k, v in metrics.divide(sums).items()}
