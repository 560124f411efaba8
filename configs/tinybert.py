"""TinyBERT, general stage: the features and the attention of a pretrained teacher.

Command: python -m bert_jax train --config=configs/tinybert.py \
    --workdir=runs/tinybert --config.distill.teacher=RUN_OR_HUGGING_FACE_DIR
Variants: :paper (the original code's choices), :cpu (short rows and small batches, for
a small teacher), :smoke (seconds). The task stage is fine-tuning from this run with
--config.distill.teacher=TUNED_RUN and the same losses, then from that one with soft.
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, by Jiao et al. 2020, sections 3.2 and 4.1."""
    config = presets.bert("base")
    config.model.update(layers=4, hidden=312, heads=12, mlp=1200)
    config.objective.pair = "none"
    config.distill.update(copy=False, soft=0.0, hard=0.0, hidden=1.0, attention=1.0)
    return presets.variants(config, arg)
