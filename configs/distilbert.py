"""DistilBERT: half the layers of a pretrained teacher, which it begins as.

Command: python -m bert_jax train --config=configs/distilbert.py \
    --workdir=runs/distilbert --config.distill.teacher=RUN_OR_HUGGING_FACE_DIR
Variants: :paper (the original code's choices), :cpu (short rows and small batches, for
a small teacher), :smoke (seconds). Sizes but the number of layers are the teacher's.
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, by Sanh et al. 2019, section 3: no sentence pairs, no segments."""
    config = presets.bert("base")
    config.model.update(layers=6, segments=0, pooler="relu")
    config.objective.pair = "none"
    config.distill.update(soft=5.0, hard=2.0, cosine=1.0)
    return presets.variants(config, arg)
