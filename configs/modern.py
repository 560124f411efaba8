"""A modern encoder of ModernBERT-base's size: 30 % masked tokens and nothing else.

Command: python -m bert_jax train --config=configs/modern.py --workdir=runs/modern
Variants: :cpu (short rows and small batches), :smoke (seconds).

What differs from ModernBERT: linear maps and norms have biases, the first layer has a
norm before attention, rotary positions have one wavelength base for local and global
layers alike, there is no dropout of 0.1 after attention, initial weights are of one
width, AdamW with a clipped gradient takes the place of StableAdamW, the batch size does
not grow, and the rows of 8,192 tokens and the fall of the learning rate at the end are
left out.
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, by Warner et al. 2024, sections 2.1 and 2.2 and appendix A."""
    config = presets.bert("base")
    config.steps = 364_000  # 1.719e12 tokens
    config.objective.update(pair="none", mask_rate=0.3, short_seq_prob=0.0)
    config.tokenizer.update(kind="byte_bpe", lowercase=False)
    config.model.update(vocab_size=50_368, layers=22, mlp=1152, segments=0)
    config.model.update(norm="pre", norm_epsilon=1e-5, activation="gelu")
    config.model.update(feed_forward="geglu", position="rope", positions=8192)
    config.model.update(window=128, global_every=3)
    config.model.update(dropout=0.0, attention_dropout=0.0)
    config.optim.update(peak_rate=8e-4, schedule="constant", beta2=0.98)
    config.optim.update(weight_decay=1e-5, warmup_share=3 / 1719)
    config.phases = config.phases[:1]
    config.phases[0].update(share=1.0, length=1024, batch=4608)
    return presets.variants(config, arg, without=("paper",))
