"""Losses and accuracies as (sum, weight) pairs, exact under any splitting."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

Pair = tuple[Float[Array, ""], Float[Array, ""]]


def cross_entropy(
    logits: Float[Array, "*batch V"],
    label: Int32[Array, "*batch"],
    weight: Float[Array, "*batch"],
) -> tuple[Pair, Pair]:
    """Weighted softmax cross entropy and accuracy.

    Sums, not means: shards, micro-batches and batches of an evaluation may hold
    different numbers of labels, and adding pairs stays exact.

    Args:
      logits: any floating dtype; the arithmetic is float32.
      label: the right class of each item.
      weight: what each item counts; 0 leaves it out.

    Returns:
      (loss sum [nats], weight sum) and (right answers, weight sum), float32.
      A label that ties for the largest logit is right; NaN is wrong.
    """
    logits = logits.astype(jnp.float32)
    loss, right = _nll(logits, label)
    total = weight.sum()
    # where, not a product: an item left out must not spoil the sum by inf or NaN.
    loss = jnp.where(weight > 0, loss, 0)
    return ((loss * weight).sum(), total), ((right * weight).sum(), total)


def soft_cross_entropy(
    logits: Float[Array, "*batch C"],
    teacher: Float[Array, "*batch C"],
    weight: Float[Array, "*batch"],
    temperature: float,
) -> Pair:
    """Cross entropy with a teacher's probabilities, both softened; or of numbers.

    Args:
      logits: of the student; the arithmetic is float32. C = 1 is a number and not a
        class: of such the loss is the squared difference.
      teacher: the same of the teacher.
      weight: what each item counts; 0 leaves it out.
      temperature: T, that both logits are divided by.

    Returns:
      (T^2 times the loss sum [nats], weight sum), float32. T^2 keeps the gradient as
      large as that of T = 1. Hinton et al. 2015, section 2.
    """
    logits, teacher = logits.astype(jnp.float32), teacher.astype(jnp.float32)
    if logits.shape[-1] == 1:
        loss = jnp.square(logits - teacher)[..., 0]
    else:
        wanted = jax.nn.softmax(teacher / temperature)
        log = jax.nn.log_softmax(logits / temperature)
        loss = -(temperature**2) * (wanted * log).sum(-1)
    loss = jnp.where(weight > 0, loss, 0)
    return (loss * weight).sum(), weight.sum()


@jax.custom_vjp
def _nll(logits, label):
    return _nll_forward(logits, label)[0]


def _nll_forward(logits, label):
    top = logits.max(-1, keepdims=True)
    log_total = top + jnp.log(jnp.exp(logits - top).sum(-1, keepdims=True))
    mine = jnp.take_along_axis(logits, label[..., None], -1)
    right = (mine >= top).astype(jnp.float32)
    outputs = (log_total - mine).squeeze(-1), right.squeeze(-1)
    return outputs, (logits, log_total, label)


def _nll_backward(kept, gradients):
    """One fused pass, where autodiff would scatter into an array of zeros."""
    logits, log_total, label = kept
    chosen = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    chosen = chosen == label[..., None]
    error = jnp.exp(logits - log_total) - chosen.astype(jnp.float32)
    return error * gradients[0][..., None], None


_nll.defvjp(_nll_forward, _nll_backward)
