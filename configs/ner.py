"""Fine-tuning on tagged words: entities in the manner of CoNLL-2003.

Command: python -m bert_jax train --config=configs/ner.py --workdir=runs/ner \
    --config.init=RUN_OR_HUGGING_FACE_DIR --config.task.train_file=train.conll \
    --config.task.dev_file=dev.conll
Variant: :smoke (seconds).
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, for words in the first column and tags in the last."""
    config = presets.glue(arg)
    config.task.update(kind="tag", text_column="0", label_column="-1")
    config.optim.peak_rate = 5e-5
    return config
