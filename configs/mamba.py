"""Masked tokens by a selective state space in both directions, at BERT-base's size.

Command: python -m bert_jax train --config=configs/mamba.py --workdir=runs/mamba
Variants: :cpu (short rows and small batches), :smoke (seconds).

Every attention sublayer is a Mamba; the feed-forward sublayers stay. The paper trains
left to right, this size for 4,800 steps: the number of steps, the share of the warm-up
and masking as in BERT are ours. Linear maps have biases.
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, by Gu and Dao 2023, appendix E.2.1, "improved recipe" at 125M."""
    config = presets.bert("base")
    config.steps = 100_000
    config.objective.pair = "none"
    config.model.update(mixer="mamba", norm="rms", norm_epsilon=1e-5)
    config.model.update(position="none", segments=0)  # its order is that of reading
    config.model.update(dropout=0.0, attention_dropout=0.0)
    config.optim.update(peak_rate=3e-3, end_rate=1e-5, schedule="cosine")
    config.optim.update(beta2=0.95, weight_decay=0.1, warmup_share=0.1)
    config.optim.epsilon = 1e-8  # of Brown et al. 2020, appendix B, which it follows
    config.phases = config.phases[:1]
    config.phases[0].update(share=1.0, length=512, batch=1024)  # half a million tokens
    return presets.variants(config, arg, without=("paper",))
