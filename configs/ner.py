"""Fine-tuning on tagged words: entities in the manner of CoNLL-2003.

Command: python -m bert_jax train --config=configs/ner.py --workdir=runs/ner \
    --config.init=RUN_OR_HUGGING_FACE_DIR --config.task.train_file=train.conll \
    --config.task.dev_file=dev.conll
Variants: :smoke (seconds), :features (an LSTM on the layers of a frozen encoder).
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, for words in the first column and tags in the last."""
    words = arg.split(",")
    config = presets.glue(",".join(word for word in words if word != "features"))
    config.task.update(kind="tag", text_column="0", label_column="-1")
    config.optim.peak_rate = 5e-5
    if "features" in words:
        config.task.features = "concat_last_4"
        config.optim.peak_rate = 1e-3
        if "smoke" in words:
            config.task.lstm_hidden, config.model.layers = 32, 4
    return config
