"""A small BERT from the documentation that every Python installation carries.

Command: make pretrain
Variant: :smoke (seconds on a laptop).
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, with the variants named in `arg` applied."""
    config = presets.bert("tiny", "cpu")
    config.steps = 5_000
    config.data.update(eval_share=0.03, eval_rows=2048)
    config.tokenizer.train_bytes = 16_000_000
    config.model.vocab_size = 2048
    config.phases = config.phases[:1]
    config.phases[0].update(share=1.0, batch=32)
    return presets.variants(config, arg)
