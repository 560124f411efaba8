"""A task learnt from a teacher too: its probabilities, its features, its attention."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from bert_jax.config import Distill
from bert_jax.losses import Pair, soft_cross_entropy
from bert_jax.model import Batch
from bert_jax.model.products import linear
from bert_jax.tasks import Pairs, Parts, Task

EXTRA = "distill"  # the part of the parameters that only training uses


class _Pass(NamedTuple):
    """What one forward pass gives."""

    logits: Any
    last: Array  # [B, L, D]
    hidden: Array | None  # [N + 1, B, L, D], the embeddings first
    scores: Array | None  # [N, B, H, L, L]


def distill(task: Task, teacher: Task, settings: Distill, given: Any) -> Task:
    """The task of a student, with the losses by which it learns from a teacher.

    Args:
      task: of the student.
      teacher: the same task of a model of the same vocabulary.
      settings: `layers` has a layer of the teacher for each of the student.
      given: the teacher's parameters, on their devices.

    Returns:
      The task with the teacher in `given`. Beside the task's pairs training has those
      of the losses that count: a `soft_loss` for each term `loss`, by its name
      (`mlm_soft_loss` for `mlm_loss`), `cosine_loss`, `hidden_loss`,
      `attention_loss`. Scoring has the task's own pairs only, and no teacher.

    The first two losses and the task's own are Sanh et al. 2019, section 3; the others
    Jiao et al. 2020, section 3.1, where hidden states of another width are mapped to
    the teacher's first, embeddings by a map of their own.
    """
    student, tutor = task.parts, teacher.parts
    assert student is not None and tutor is not None
    widths = student.bert.config.hidden, tutor.bert.config.hidden
    extra = ("embeddings", "layers") if settings.hidden and len(set(widths)) > 1 else ()

    def init(rng: jax.Array) -> dict[str, Any]:
        draw = jax.nn.initializers.truncated_normal(student.bert.config.init_std)
        keys = jax.random.split(jax.random.fold_in(rng, 1), 2)
        maps = {
            name: {"kernel": draw(key, widths, jnp.float32)}
            for name, key in zip(extra, keys, strict=False)
        }
        return task.init(rng) | ({EXTRA: maps} if maps else {})

    def loss(
        params: dict[str, Any], batch: Batch, rng: jax.Array | None, *given: Any
    ) -> Pairs:
        if not given:
            return task.loss(params, batch, rng)
        own = _apply(student, settings, params, batch, rng)
        other = _apply(tutor, settings, jax.lax.stop_gradient(given[0]), batch, None)
        found = student.pairs(own.logits, batch)
        example = jnp.asarray(batch["example"])
        if settings.soft:
            found |= _soft(student, own.logits, other.logits, batch, settings)
        if settings.cosine:
            found["cosine_loss"] = _cosine(own.last, other.last, example)
        if own.hidden is not None and other.hidden is not None:
            maps = params.get(EXTRA, {})
            mapped = _mapped(own.hidden, maps)
            wanted = other.hidden[jnp.array((0, *settings.layers))]
            found["hidden_loss"] = _hidden(mapped, wanted, example)
        if own.scores is not None and other.scores is not None:
            wanted = other.scores[jnp.array(settings.layers) - 1]
            found["attention_loss"] = _attention(own.scores, wanted, example)
        return found

    factors = {n: settings.hard * task.factors.get(n, 1) for n in task.terms}
    factors |= {_soft_name(term): settings.soft for term in task.terms}
    factors |= {f"{k}_loss": getattr(settings, k) for k in ("cosine", *_TRACES)}
    terms = tuple(name for name, factor in factors.items() if factor)
    return task._replace(
        init=init, loss=loss, terms=terms, factors=factors, given=(given,)
    )


_TRACES = {"hidden": "hidden", "attention": "scores"}  # what the model has to keep


def _apply(
    parts: Parts, settings: Distill, params: Any, batch: Batch, rng: jax.Array | None
) -> _Pass:
    """Logits, and what the encoder made on the way to them."""
    wanted = [kept for name, kept in _TRACES.items() if getattr(settings, name)]
    bert = parts.bert.clone(keep=wanted[-1] if wanted else "")
    logits, kept = bert.apply(
        {"params": params},
        batch,
        rng,
        method=parts.method,
        capture_intermediates=lambda _, name: name in ("encode", "traces"),
        mutable=["intermediates"],
    )
    found = {name: calls[0] for name, calls in kept["intermediates"].items()}
    hidden, scores = found.get("traces", (None, None))
    hidden = hidden if settings.hidden else None
    return _Pass(logits, found["encode"], hidden, scores)


def _soft_name(term: str) -> str:
    return f"{term.removesuffix('loss')}soft_loss"


def _soft(
    parts: Parts, logits: Any, teacher: Any, batch: Batch, settings: Distill
) -> Pairs:
    taught, found = parts.choices(teacher, batch), {}
    for term, (own, weight) in parts.choices(logits, batch).items():
        other, _ = taught[term]
        # Tables of one vocabulary may be padded to different sizes.
        width = min(own.shape[-1], other.shape[-1])
        pair = own[..., :width], other[..., :width]
        found[_soft_name(term)] = soft_cross_entropy(
            *pair, weight, settings.temperature
        )
    return found


def _cosine(
    x: Float[Array, "B L D"], y: Float[Array, "B L D"], example: Int32[Array, "B L"]
) -> Pair:
    """1 - the cosine of two vectors, over all tokens."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    inner, *squares = ((a * b).sum(-1) for a, b in ((x, y), (x, x), (y, y)))
    size = jnp.sqrt(jnp.maximum(squares[0] * squares[1], 1e-24))
    real = (example > 0).astype(jnp.float32)
    return ((1 - inner / size) * real).sum(), real.sum()


def _mapped(hidden: Float[Array, "N B L D"], maps: Any) -> Float[Array, "N B L _"]:
    if not maps:
        return hidden
    first, rest = (maps[name]["kernel"] for name in ("embeddings", "layers"))
    pairs = (hidden[:1], first), (hidden[1:], rest)
    return jnp.concatenate([linear(1, hidden.dtype, *pair) for pair in pairs])


def _hidden(
    x: Float[Array, "N B L D"], y: Float[Array, "N B L D"], example: Int32[Array, "B L"]
) -> Pair:
    """Mean squared error of a token's features, added up over the layers."""
    error = jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32))
    real = (example > 0).astype(jnp.float32)
    return (error.mean(-1).sum(0) * real).sum(), real.sum()


def _attention(
    x: Float[Array, "N B H L L"],
    y: Float[Array, "N B H L L"],
    example: Int32[Array, "B L"],
) -> Pair:
    """Mean squared error of the heads' scores, of the tokens that see each other."""
    same = (example[:, :, None] == example[:, None]) & (example > 0)[:, None]
    seen = same.astype(jnp.float32)
    error = jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32))
    return (error.mean(2).sum(0) * seen).sum(), seen.sum()
