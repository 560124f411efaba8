"""A small BERT from the documentation that every Python installation carries.

Command: make pretrain
Variant: :smoke (seconds on a laptop).
"""

from bert_jax.config import presets, to_config_dict
from bert_jax.config.schema import Config, Data, Model, Optim, Phase, Tokenizer


def get_config(arg: str = ""):
    """The config, with the variants named in `arg` applied."""
    config = Config(
        steps=2_000,
        log_every=50,
        eval_every=500,
        save_every=500,
        data=Data(source=("python-docs",), eval_share=0.03, eval_rows=1024),
        tokenizer=Tokenizer(train_bytes=16_000_000),
        model=Model(
            vocab_size=8192,
            layers=2,
            hidden=128,
            heads=2,
            mlp=512,
            positions=128,
            # One short run over a small model underfits: dropout only slows it.
            dropout=0.0,
            attention_dropout=0.0,
            dtype="float32",
        ),
        optim=Optim(peak_rate=2e-3, warmup_share=0.08),
        phases=(Phase(length=128, batch=64),),
    )
    return presets.variants(to_config_dict(config), arg)
