"""TinyBERT, general stage: the features and the attention of a pretrained teacher.

Command: python -m bert_jax train --config=configs/tinybert.py \
    --workdir=runs/tinybert --config.distill.teacher=RUN_OR_HUGGING_FACE_DIR
Variants: :cpu (short rows and small batches, for a small teacher), :smoke (seconds).
The task stage is fine-tuning from this run with --config.distill.teacher=TUNED_RUN and
the same losses, then from that one with soft.

What differs from the authors' code: rows hold one text, not a pair, and the gradient is
clipped as a whole, not each parameter's alone.
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, by Jiao et al. 2020, section 4, and their `general_distill.py`.

    Of the paper are three passes over 2,500 million words in rows of 128, of the code
    and its command the batch and the learning rate.
    """
    config = presets.bert("base")
    config.steps = 229_000
    config.model.update(layers=4, hidden=312, heads=12, mlp=1200, activation="gelu")
    config.objective.pair = "none"
    config.distill.update(copy=False, soft=0.0, hard=0.0, hidden=1.0, attention=1.0)
    config.optim.update(peak_rate=5e-5, warmup_share=0.1, bias_correction=False)
    config.phases = config.phases[:1]
    config.phases[0].update(share=1.0, length=128, batch=256)
    return presets.variants(config, arg, without=("paper",))
