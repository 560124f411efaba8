"""ALBERT: one layer's parameters for all layers, narrow embeddings, sentence order.

Command: python -m bert_jax train --config=configs/albert.py --workdir=runs/albert
Variants: :large, :xlarge, :paper (the original code's choices), :cpu (short rows and
small batches), :smoke (seconds). The sizes are those of version 2, which has no
dropout; the number of steps is the paper's, not the millions of that release. Whole
words are masked, not runs of up to three, and 15 % of the tokens of a row, not at most
20 as in the authors' command.
"""

from bert_jax.config import presets

# Layers, hidden, heads of the released models: of xlarge not a head for 64 features.
SIZES = {"base": (12, 768, 12), "large": (24, 1024, 16), "xlarge": (24, 2048, 16)}


def get_config(arg: str = ""):
    """The config, by Lan et al. 2020, table 1, sections 3.1, 4.1 and 4.8."""
    layers, hidden, heads = SIZES[presets.size(arg, SIZES)]
    config = presets.bert("base")
    config.steps = 125_000
    config.objective.update(pair="sop", masking="whole_word")
    config.tokenizer.kind = "unigram"
    config.model.update(layers=layers, hidden=hidden, heads=heads, mlp=4 * hidden)
    config.model.update(vocab_size=30_000, embedding=128, layer_groups=1)
    config.model.update(dropout=0.0, attention_dropout=0.0)
    config.optim.update(name="lamb", peak_rate=1.76e-3)
    config.optim.warmup_share = 3_125 / config.steps  # of the authors' README
    config.phases = config.phases[:1]
    config.phases[0].update(share=1.0, length=512, batch=4096)
    return presets.variants(config, arg, SIZES)
