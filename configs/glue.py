"""Fine-tuning on a GLUE task, or on any file of labelled texts.

Command: python -m bert_jax train --config=configs/glue.py:sst2 --workdir=runs/sst2 \
    --config.init=RUN_OR_HUGGING_FACE_DIR
Variants: cola sst2 mrpc stsb qqp mnli qnli rte wnli, from TensorFlow Datasets; or from
the original files with --config.task.train_file=train.tsv and
--config.task.dev_file=dev.tsv. None for files of your own.
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config of the task named in `arg`."""
    return presets.glue(arg)
