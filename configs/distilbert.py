"""DistilBERT: half the layers of a pretrained teacher, which it begins as.

Command: python -m bert_jax train --config=configs/distilbert.py \
    --workdir=runs/distilbert --config.distill.teacher=RUN_OR_HUGGING_FACE_DIR
Variants: :cpu (short rows and small batches, for a small teacher), :smoke (seconds).
Sizes but the number of layers are the teacher's.

What differs from the authors' code: the student begins as layers 2, 4 to 12, not 1, 3,
5, 8, 10 and 12; the teacher is followed where tokens are predicted, not everywhere; and
rare tokens are predicted no more often than others.
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, by Sanh et al. 2019, section 3, and the defaults of their `train.py`.

    The batch is the largest of the paper, which gives no number of steps; the code has
    three passes over the text, of which BERT's million steps of 256 rows are 40.
    """
    config = presets.bert("base")
    config.steps, config.eval_every, config.save_every = 4_700, 500, 500
    config.model.update(layers=6, segments=0, pooler="relu")
    config.objective.update(pair="none", short_seq_prob=0.0)
    config.distill.update(soft=5.0, hard=2.0, cosine=1.0)
    config.optim.update(peak_rate=5e-4, warmup_share=0.05)
    config.optim.update(weight_decay=0.0, clip_norm=5.0)
    config.phases = config.phases[:1]
    config.phases[0].update(share=1.0, length=512, batch=4096)
    return presets.variants(config, arg, without=("paper",))
