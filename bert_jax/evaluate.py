"""The held-out set: what it is, and how a model scores on it."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from bert_jax import metrics
from bert_jax.config import Config
from bert_jax.data import device
from bert_jax.data.pipeline import Batches
from bert_jax.data.store import Store
from bert_jax.tasks import Task

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


class HeldOut(NamedTuple):
    """What a model is scored on, and what is known of it beforehand."""

    batches: Any  # with len() and batch(number, part)
    facts: dict[str, Any]  # md5, baselines
    # From what the model predicts for each batch to more metrics, if any.
    score: Callable[[list[dict[str, np.ndarray]]], dict[str, float]] | None = None


def held_out(store: Store, config: Config, phase: int) -> HeldOut:
    """The held-out set in the shape of one phase.

    Args:
      store: the tokenised corpus.
      config: of the run; its seed plays no part.
      phase: index of the phase whose row length is used.

    Returns:
      The batches and `eval_set_md5` (over every array, in order), `unigram_loss`
      (entropy of the distribution of the masked tokens, in nats: what a model
      scores that knows their frequencies and nothing of the context) and, with
      sentence pairs, `eval_nsp_majority` (the share of the commoner class) and
      `eval_nsp_baseline` (that, or the accuracy of `guess_by_lengths` if it is
      higher), or the same of `sop`.
    """
    batches = Batches(store, config, phase, held_out=True)
    digest = hashlib.md5(usedforsecurity=False)
    tokens = np.zeros(store.vocabulary.size, np.int64)
    for number in range(len(batches)):
        batch = batches.batch(number)
        for name, array in sorted(batch.items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        used = batch["mlm_weight"] > 0
        tokens += np.bincount(batch["mlm_label"][used], minlength=len(tokens))
    share = tokens[tokens > 0] / max(tokens.sum(), 1)
    facts: dict[str, Any] = {"eval_set_md5": digest.hexdigest()}
    facts["unigram_loss"] = float(-(share * np.log(share)).sum())
    if config.objective.pair != "none":
        name = f"eval_{config.objective.pair}"
        test, known = batches.pairs(0, 1), batches.pairs(1, 9)
        if len(test[2]):
            share = float(test[2].mean())
            majority = max(share, 1 - share)
            facts[f"{name}_majority"] = majority
            facts[f"{name}_baseline"] = max(majority, guess_by_lengths(known, test))
    return HeldOut(batches, facts)


def guess_by_lengths(known: Pairs, test: Pairs) -> float:
    """Return how well the lengths of two segments alone predict their label.

    The classifier is ridge regression on quantiles of both lengths, of their sum and
    of their difference, and on all combinations of the two.

    Args:
      known: lengths of segment A, int [E], of B, and bool labels, to fit to.
      test: the same of other pairs, to predict.

    Returns:
      The accuracy on `test`, from 0 to 1.
    """
    (first, second, label), count = known, len(known[2])
    if not count:
        return 0.0
    both = [np.concatenate(pair) for pair in zip(known[:2], test[:2], strict=True)]
    first, second = both
    wide = [_one_hot(v, 8) for v in (*both, first + second, first - second)]
    coarse = _one_hot(first, 5)[:, :, None] * _one_hot(second, 5)[:, None]
    features = np.concatenate([*wide, coarse.reshape(len(first), -1)], 1)
    train, unseen = features[:count], features[count:]
    normal = train.T @ train + 10 * np.eye(train.shape[1])
    weight = np.linalg.solve(normal, train.T @ (label - label.mean()))
    return float(((unseen @ weight > 0.5 - label.mean()) == test[2]).mean())


def _one_hot(value: np.ndarray, bins: int) -> np.ndarray:
    """Which quantile each value lies in; values at an edge are a class of their own."""
    edges = np.unique(np.quantile(value, np.arange(1, bins) / bins, method="nearest"))
    place = np.searchsorted(edges, value, "left") + np.searchsorted(
        edges, value, "right"
    )
    return np.eye(2 * len(edges) + 1)[place]


def evaluate(
    task: Task,
    eval_step: Callable[[Any, Any], Any],
    score_step: Callable[[Any, Any], Any],
    params: Any,
    data: HeldOut,
    sharding: NamedSharding,
    poll: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Scores parameters on the held-out set.

    Args:
      task: gives the final metrics from sums.
      eval_step: from `step.make_eval_step`.
      score_step: from `step.make_score_step`; used instead if `data` has a score.
      params: the parameters, sharded as `eval_step` expects.
      data: from `held_out`.
      sharding: of a batch.
      poll: is told of each batch, before it is scored; may raise.

    Returns:
      `eval_...` metrics over all rows together.
    """
    sums: dict[str, tuple[float, float]] = {}
    outputs = []
    part = device.host_part(sharding)
    for number in range(len(data.batches)):
        poll("evaluating")
        read = data.batches.batch(number, part)
        if part == (0, 1):  # several hosts have what they trained on: it divides
            read = device.padded(read, sharding)
        batch = device.to_device(read, sharding, part)
        if data.score:
            pairs, output = score_step(params, batch)
            outputs.append(jax.device_get(output))
        else:
            pairs = eval_step(params, batch)
        new = {name: (float(a), float(b)) for name, (a, b) in pairs.items()}
        sums = metrics.add(sums, new)
    more = data.score(outputs) if data.score else {}
    return {**task.score(sums), **more}
