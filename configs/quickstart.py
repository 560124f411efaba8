"""A small BERT from the documentation that every Python installation carries.

Command: make pretrain
Variant: :smoke (seconds on a laptop).
"""

from bert_jax.config import presets, to_config_dict
from bert_jax.config.schema import Config, Data, Model, Optim, Phase, Tokenizer


def get_config(arg: str = ""):
    """The config, with the variants named in `arg` applied."""
    config = Config(
        steps=5_000,
        log_every=100,
        eval_every=1_000,
        save_every=1_000,
        data=Data(source=("python-docs",), eval_share=0.03, eval_rows=2048),
        tokenizer=Tokenizer(train_bytes=16_000_000),
        # A short run on a small corpus learns nothing but word frequencies until
        # attention to neighbours sets in. Short rows, small batches, a small
        # vocabulary and larger initial weights bring that forward to step 1,500.
        model=Model(
            vocab_size=2048,
            layers=2,
            hidden=128,
            heads=2,
            mlp=512,
            positions=128,
            init_std=0.05,
            dropout=0.0,
            attention_dropout=0.0,
            dtype="float32",
        ),
        optim=Optim(peak_rate=2e-3, warmup_share=0.08, beta2=0.98),
        phases=(Phase(length=48, batch=32),),
    )
    return presets.variants(to_config_dict(config), arg)
