"""Fine-tuning on questions with choices: SWAG, and any file of its kind.

Command: python -m bert_jax train --config=configs/swag.py --workdir=runs/swag \
    --config.init=RUN_OR_HUGGING_FACE_DIR --config.task.train_file=train.csv \
    --config.task.dev_file=val.csv
Variant: :smoke (seconds).
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, for the columns of SWAG's CSV files."""
    config = presets.glue(arg)
    config.task.update(kind="choice", text_column="sent1", start_column="sent2")
    config.task.update(pair_column="ending0,ending1,ending2,ending3")
    config.optim.peak_rate = 2e-5
    config.phases[0].batch = 16
    return config
