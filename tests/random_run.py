"""A run directory of a small model with random weights, made without training."""

from pathlib import Path

import jax
import numpy as np

from bert_jax.__main__ import main
from bert_jax.config import Config, Model
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.interop import huggingface
from bert_jax.tasks.pretrain import pretrain

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += [f"{'##' * (i % 3 == 0)}w{i}" for i in range(200)]
CONFIG = Config(
    model=Model(
        vocab_size=len(WORDS),
        hidden=24,
        layers=5,
        heads=3,
        mlp=40,
        positions=160,
        init_std=0.3,
        dtype="float32",
    )
)

# Flags with which it learns a simple task within seconds.
FAST = [
    "--config.optim.peak_rate=3e-3",
    "--config.phases[0].length=32",
    "--config.phases[0].batch=16",
    "--config.model.dropout=0.0",
    "--config.model.attention_dropout=0.0",
    "--config.model.dtype=float32",
]


def write(folder: Path) -> Path:
    """Makes `folder`/run by exporting random weights and importing them."""
    model, task = CONFIG.model, CONFIG.task
    params = pretrain(model, CONFIG.objective).init(jax.random.key(7))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = load_tokenizer(folder, CONFIG.tokenizer)
    kind, tensors = huggingface.to_tensors(params, model, task)
    huggingface.save(folder / "hf", CONFIG, kind, tensors, tokenizer, "")
    run = folder / "run"
    assert main(["import", f"--source={folder / 'hf'}", f"--workdir={run}"]) == 0
    return run


def text(lines: int, seed: int = 0) -> str:
    """Lines of 0 to 200 made-up words, mostly short."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(lines):
        count = int(
            rng.choice([0, 1, 3, 9, 30, 200], p=[0.05, 0.1, 0.3, 0.3, 0.2, 0.05])
        )
        rows.append(" ".join(f"w{i}" for i in rng.integers(0, 200, count)))
    return "\n".join(rows) + "\n"
