"""Update rules: AdamW as BERT used it, LAMB and RAdam, built on optax."""

import optax

from bert_jax import config
from bert_jax.optim.layerwise import hold, rate_factors, scale_by_layer
from bert_jax.optim.schedules import learning_rate
from bert_jax.optim.transforms import (
    clip_by_global_norm,
    decays,
    scale_by_layer_trust_ratio,
    scale_by_uncorrected_adam,
)

__all__ = ["decays", "hold", "learning_rate", "optimizer", "rate_factors"]


def optimizer(settings: config.Optim, steps: int) -> optax.GradientTransformation:
    """The whole update rule: clipping, moments, decay, trust ratio, rates.

    Args:
      settings: the `optim` group of the config. `bias_correction` acts on adamw
        and lamb; radam's rectification is defined on corrected moments.
      steps: length of the whole run, for the learning rate. [updates]

    Returns:
      A gradient transformation that must be given `params` in `update`. Its moments
      have the parameters' shapes and may be sharded like them.

    AdamW: Loshchilov & Hutter 2019, without bias correction as in Devlin et al.
    2019; LAMB: You et al. 2019; RAdam: Liu et al. 2020.
    """
    betas = settings.beta1, settings.beta2, settings.epsilon
    if settings.name == "radam":
        moments = optax.scale_by_radam(*betas)
    elif settings.bias_correction:
        moments = optax.scale_by_adam(*betas)
    else:
        moments = scale_by_uncorrected_adam(*betas)
    clip, trust = optax.identity(), optax.identity()
    if settings.clip_norm > 0:
        clip = clip_by_global_norm(settings.clip_norm)
    if settings.name == "lamb":
        trust = scale_by_layer_trust_ratio()
    # The names appear in checkpoints: they must not depend on what is switched on.
    return optax.named_chain(
        ("clip", clip),
        ("moments", moments),
        ("decay", optax.add_decayed_weights(settings.weight_decay, mask=decays)),
        ("trust", trust),
        ("rate", optax.scale_by_learning_rate(learning_rate(settings, steps))),
        ("layers", scale_by_layer(settings)),
    )
