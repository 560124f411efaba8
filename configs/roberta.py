"""RoBERTa: BERT without sentence pairs, in large batches of full rows.

Command: python -m bert_jax train --config=configs/roberta.py --workdir=runs/roberta
Variants: :large, :cpu (short rows and small batches), :smoke (seconds).

What differs from RoBERTa: where a document ends, a row goes on with another one at
random and not with the next.
"""

from bert_jax.config import presets

SIZES = {"base": (6e-4, 24_000), "large": (4e-4, 30_000)}  # rate, steps of its warm-up


def get_config(arg: str = ""):
    """The config, by Liu et al. 2019, table 9 and sections 3.1 and 4."""
    size = presets.size(arg, SIZES)
    rate, warmup = SIZES[size]
    config = presets.bert(size)
    config.steps = 500_000
    config.objective.update(pair="none", input="full_sentences", short_seq_prob=0.0)
    config.tokenizer.update(kind="byte_bpe", lowercase=False)
    config.model.update(vocab_size=50_265, segments=1)
    # Of the released model, as its first authors' library computes.
    config.model.update(activation="gelu", norm_epsilon=1e-5)
    config.optim.update(peak_rate=rate, warmup_share=warmup / config.steps)
    config.optim.update(beta2=0.98, clip_norm=0.0)
    config.phases = config.phases[:1]
    config.phases[0].update(share=1.0, length=512, batch=8192)
    return presets.variants(config, arg, SIZES, without=("paper",))
