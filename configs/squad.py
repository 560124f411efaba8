"""Fine-tuning on questions about a text: SQuAD 1.1 and 2.0, KorQuAD 1.0.

Command: python -m bert_jax train --config=configs/squad.py --workdir=runs/squad \
    --config.init=RUN_OR_HUGGING_FACE_DIR --config.task.train_file=train-v1.1.json \
    --config.task.dev_file=dev-v1.1.json
Variant: :smoke (seconds).
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, with windows of 384 tokens."""
    config = presets.glue(arg)
    config.task.kind = "span"
    config.optim.peak_rate = 5e-5
    if "smoke" not in arg:
        config.phases[0].length = 384
    return config
