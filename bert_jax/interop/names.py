"""Parameters by other names: ours, Hugging Face's and the original TensorFlow's.

Ours are those of `bert_jax.model`, layers stacked; theirs come one tensor a layer. A
Hugging Face kernel is [output, input]; ours and TensorFlow's are the transpose. The
tables are in `families`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bert_jax import tree
from bert_jax.config import Model
from bert_jax.errors import UserError
from bert_jax.interop.families import Name
from bert_jax.model import padded_vocabulary
from bert_jax.model.parts import of_encoder, part

Tensors = Mapping[str, np.ndarray]  # by Hugging Face's names

_SHOWN = 12  # faults of one kind in a message


def parts_of(names: Iterable[str], table: Iterable[Name]) -> set[str]:
    """Our parts of which their names hold at least one tensor."""
    there = set(names)
    return {part(row.ours) for row in table if row.theirs in there}


def _sizes(model: Model, classes: int) -> dict[str, int]:
    return {
        "V": model.vocab_size,
        "W": padded_vocabulary(model),
        "D": model.hidden,
        "E": model.embedding_width,
        "H": model.heads,
        "h": model.hidden // model.heads,
        "F": model.mlp,
        "P": model.positions,
        "S": model.segments,
        "C": classes,
        "2": 2,
        "1": 1,
    }


def _shape(row: Name, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[letter] for letter in (row.inputs + " " + row.outputs).split())


def _their_shape(row: Name, sizes: Mapping[str, int], lead: int) -> tuple[int, ...]:
    inputs, outputs = (
        [sizes[letter] for letter in axes.replace("W", "V").split()]
        for axes in (row.inputs, row.outputs)
    )
    if row.inputs:
        return math.prod(outputs), math.prod(inputs)
    if row.outputs == "P E":
        return outputs[0] + lead, outputs[1]
    # Of tables two axes; of biases one, whatever its axes are here.
    return tuple(outputs) if row.outputs[0] in "WS" else (math.prod(outputs),)


def from_theirs(
    tensors: Tensors,
    table: Iterable[Name],
    model: Model,
    parts: Iterable[str],
    classes: int,
    where: str,
    lead: int = 0,
) -> dict[str, Any]:
    """Our parameters from Hugging Face's tensors.

    Args:
      tensors: by name, floating, nothing else among them.
      table: of the names.
      model: sizes.
      parts: of the model that must be there besides the encoder, such as `mlm`.
      classes: of the `head`, if that is one of the parts.
      where: file and config, for the message.
      lead: rows before the first position's, which are left out.

    Returns:
      Nested dict of float32 arrays; rows that pad the vocabulary are zero.

    Raises:
      UserError: lists together all names that are missing, unexpected, or whose
        shape is not that of the config.
    """
    sizes, wanted, flat = _sizes(model, classes), {}, {}
    parts = {*of_encoder(model), *parts}
    rows = [row for row in table if part(row.ours) in parts]
    for row in rows:
        shape = _their_shape(row, sizes, lead)
        wanted |= dict.fromkeys(_names(row, model), shape)
    _check(tensors, wanted, where)
    for row in rows:
        shape = _shape(row, sizes)
        each = [_ours(tensors[name], row, shape) for name in _names(row, model)]
        flat[row.ours] = np.stack(each) if "{}" in row.theirs else each[0]
    return tree.unflatten(flat)


def to_theirs(
    params: Any, table: Iterable[Name], model: Model, classes: int, lead: int = 0
) -> dict[str, np.ndarray]:
    """Hugging Face's tensors from our parameters; the inverse of `from_theirs`.

    Args:
      params: nested dict of arrays that this process can read in full.
      table: of the names.
      model: sizes.
      classes: of the `head`, if there is one.
      lead: rows of zeros before the first position's.

    Returns:
      float32 arrays by name, contiguous, without the vocabulary's padding.
    """
    sizes, flat = _sizes(model, classes), tree.flatten(params)
    tensors = {}
    for row in table:
        if row.ours not in flat:
            continue
        whole = np.asarray(flat[row.ours])
        each = whole if "{}" in row.theirs else [whole]
        shape = _their_shape(row, sizes, lead)
        for name, array in zip(_names(row, model), each, strict=True):
            tensors[name] = _theirs(array, row, shape)
    return tensors


def _names(row: Name, model: Model) -> list[str]:
    if "{}" not in row.theirs:
        return [row.theirs]
    count = model.layer_groups or model.layers
    return [row.theirs.format(layer) for layer in range(count)]


def _ours(array: np.ndarray, row: Name, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(array, np.float32)
    if row.inputs:
        array = array.T
    if row.outputs[0] == "P":
        array = array[len(array) - shape[0] :]
    if row.outputs[0] == "W":
        rows = shape[0] - len(array)
        array = np.pad(array, [(0, rows)] + [(0, 0)] * (array.ndim - 1))
    return array.reshape(shape)


def _theirs(array: np.ndarray, row: Name, shape: tuple[int, ...]) -> np.ndarray:
    if row.outputs[0] == "W":
        array = array[: shape[0]]
    if row.outputs[0] == "P":
        array = np.pad(array, [(shape[0] - len(array), 0), (0, 0)])
    if row.inputs:
        array = array.reshape(shape[::-1]).T
    return np.ascontiguousarray(array.reshape(shape), np.float32)


def _check(tensors: Tensors, wanted: Mapping[str, tuple[int, ...]], where: str) -> None:
    faults = {
        "missing": [f"{name} {list(wanted[name])}" for name in wanted.keys() - tensors],
        "unexpected": [
            f"{name} {list(tensors[name].shape)}" for name in tensors.keys() - wanted
        ],
        "of another shape": [
            f"{name}: {list(tensors[name].shape)} in the file, {list(shape)} by the "
            "config"
            for name, shape in wanted.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    lines = []
    for kind, names in faults.items():
        if names:
            lines.append(f"  {len(names)} {kind}:")
            lines += [f"    {name}" for name in sorted(names)[:_SHOWN]]
            lines += [f"    and {len(names) - _SHOWN} more"] if names[_SHOWN:] else []
    if faults["unexpected"]:
        first = min(tensors.keys() - wanted)
        start = re.escape(first.split(".")[0])
        lines.append(
            "  tensors of no part known here can be left out: bert-jax import "
            f"--source=DIR --workdir=RUN --drop='^{start}\\.'; --config.init=RUN takes "
            "the result"
        )
    if lines:
        raise UserError(
            f"{where}: these tensors are not those of a model of that config:\n"
            + "\n".join(lines)
        )


def from_tf1(name: str) -> str:
    """Hugging Face's name of a variable of the original TensorFlow code."""
    name = re.sub(r"/layer_(\d+)/", r".layer.\1.", name).replace("/", ".")
    name = re.sub(r"_embeddings$", "_embeddings.weight", name)
    name = re.sub(r"\.(kernel|gamma|output_weights)$", ".weight", name)
    return re.sub(r"\.(beta|output_bias)$", ".bias", name)
