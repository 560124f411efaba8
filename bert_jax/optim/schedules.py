"""The learning rate as a function of the step."""

import jax
import jax.numpy as jnp
import optax

from bert_jax import config


def learning_rate(settings: config.Optim, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to `peak_rate`, then the chosen decay.

    With `decay_from="start"` the decay is counted from step 0 and the warm-up only
    replaces its first part, so the rate drops when the warm-up ends. That is what
    the original TensorFlow code does (`optimization.py`, google-research/bert).

    Args:
      settings: the `optim` group of the config.
      steps: length of the whole run, all phases together. [updates]

    Returns:
      Function from the step, an int32 [] counted from 0, to the rate, float32 [].
      `linear` and `cosine` reach `end_rate` at `steps` and stay there; `rsqrt`
      halves whenever the step, from the end of the warm-up on, grows fourfold.
    """
    warmup = round(settings.warmup_share * steps)
    start = 0 if settings.decay_from == "start" else warmup
    peak, end = settings.peak_rate, settings.end_rate

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        now = jnp.asarray(step, jnp.float32)
        elapsed = jnp.maximum(now - start, 0.0)
        share = jnp.minimum(elapsed / max(steps - start, 1), 1.0)
        if settings.schedule == "linear":
            rate = peak + (end - peak) * share
        elif settings.schedule == "cosine":
            rate = end + (peak - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * share))
        elif settings.schedule == "rsqrt":
            rate = peak * jax.lax.rsqrt(1.0 + elapsed / max(warmup, 1))
        else:
            rate = jnp.full_like(now, peak)
        return jnp.where(now < warmup, peak * now / max(warmup, 1), rate)

    return schedule
