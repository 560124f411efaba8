"""BERT-base pretraining: MLM and NSP, 90 % of the steps at 128 tokens, then 512.

Command: python -m bert_jax train --config=configs/bert_base.py --workdir=runs/base
Variants: :paper (the original code's choices), :cpu (learns in an hour on a few
cores), :smoke (seconds).
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, with the variants named in `arg` applied."""
    return presets.bert("base", arg)
