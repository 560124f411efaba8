"""The released checkpoints of the original code, google-research/bert."""

from pathlib import Path

import numpy as np

from bert_jax.config import TaskSettings
from bert_jax.errors import UserError
from bert_jax.interop import names, weights
from bert_jax.interop.families import BERT
from bert_jax.interop.source import (
    AS_STATED,
    Choices,
    Described,
    Source,
    read_json,
    read_model,
    read_tokenizer,
)

# Its "gelu" is the tanh approximation, unlike Hugging Face's of the same name.
_FAMILY = BERT._replace(activations={"gelu": "gelu_tanh"})
_NOT_WEIGHTS = ("/adam_m", "/adam_v", "global_step")  # of the optimizer


def describe(directory: Path, choices: Choices = AS_STATED) -> Described:
    """The model in `bert_config.json` and the tokenizer in `vocab.txt`.

    Raises:
      UserError: a file is missing or damaged.
    """
    file = directory / "bert_config.json"
    # LayerNorm's epsilon is a constant of that code, in no file: 1e-12, our default.
    model = read_model(file, read_json(file), _FAMILY)
    return read_tokenizer(directory, model, choices.lowercase)


def load(directory: Path, choices: Choices = AS_STATED) -> Source:
    """The same with the weights of the one `*.ckpt` beside them.

    Raises:
      UserError: as `describe`; also weights that are damaged or do not fit.
    """
    model, settings, tokenizer = describe(directory, choices)
    if choices.architecture:
        raise UserError(
            f"--architecture={choices.architecture}: {directory} is a checkpoint of "
            "the original code, which names no class; leave the flag out"
        )
    tensors, dropped = weights.drop(_read(directory), choices.drop, directory)
    bad = [name for name, array in tensors.items() if not np.isfinite(array).all()]
    if bad:
        raise UserError(
            f"{directory}: {bad[0]} holds numbers that are not finite (NaN or infinity)"
        )
    table = BERT.table()
    parts = names.parts_of(tensors, table)
    where = f"{directory}, config in bert_config.json"
    params = names.from_theirs(tensors, table, model, parts, 0, where)
    kind = "pretrain" if "mlm" in parts else "encoder"
    pair = "nsp" if "nsp" in parts else "none"
    task = TaskSettings(kind=kind)
    return Source(model, task, params, settings, tokenizer, pair, tuple(dropped))


def _read(directory: Path) -> dict[str, np.ndarray]:
    """The variables by Hugging Face's names, kernels turned to [output, input]."""
    found = sorted(directory.glob("*.ckpt*.index")) or sorted(directory.glob("*.index"))
    if len(found) != 1:
        there = ", ".join(file.name for file in found) or "none"
        raise UserError(
            f"{directory}: needs one checkpoint, bert_model.ckpt.index with its "
            f".data file; found: {there}"
        )
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(
            f"{directory}: reading a TensorFlow checkpoint needs TensorFlow; "
            "pip install tensorflow-cpu"
        ) from None
    try:
        reader = tf.train.load_checkpoint(str(found[0].with_suffix("")))
        variables = {
            name: reader.get_tensor(name)
            for name in reader.get_variable_to_shape_map()
            if not name.endswith(_NOT_WEIGHTS)
        }
    except Exception as error:  # the library raises a dozen kinds
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{found[0]}: damaged, or its .data file is ({first}); fetch it again"
        ) from None
    return {
        names.from_tf1(name): array.T if name.endswith("/kernel") else array
        for name, array in variables.items()
    }
