"""ELECTRA: a small generator replaces tokens, the model finds out which.

Command: python -m bert_jax train --config=configs/electra.py --workdir=runs/electra
Variants: :small, which is the default, :base, :paper (the original code's choices),
:cpu (short rows and small batches), :smoke (seconds).

What differs from ELECTRA: a row holds one text with one segment, not mostly two that
follow one another.
"""

from bert_jax.config import presets

SIZES = ("small", "base")


def get_config(arg: str = ""):
    """The config, by Clark et al. 2020, table 6 and sections 3.1 to 3.3."""
    config = presets.bert("base")
    config.objective.update(kind="rtd", pair="none", rtd_factor=50.0)
    # Of the authors' code: of the tokens to predict some stay, and none is random.
    config.objective.update(mask_token_share=0.85, random_token_share=0.0)
    config.objective.short_seq_prob = 0.05
    # As in the released models' classes, so that both halves can be exported.
    config.model.update(activation="gelu", pooler="gelu")
    config.phases = config.phases[:1]
    config.phases[0].update(share=1.0, length=512, batch=256)
    if presets.size(arg, SIZES) == "small":
        config.steps, config.optim.peak_rate = 1_000_000, 5e-4
        config.model.update(hidden=256, heads=4, mlp=1024, embedding=128)
        config.objective.generator_size = 0.25
        config.phases[0].update(length=128, batch=128)
    else:
        config.steps, config.optim.peak_rate = 766_000, 2e-4
        config.objective.generator_size = 1 / 3
    config.optim.warmup_share = 10_000 / config.steps
    return presets.variants(config, arg, SIZES)
