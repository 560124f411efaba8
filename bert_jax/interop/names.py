"""One table of names: our parameters, Hugging Face's and the original TensorFlow's.

Ours are those of `bert_jax.model`, layers stacked; theirs come one tensor a layer. A
Hugging Face kernel is [output, input]; ours and TensorFlow's are the transpose.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bert_jax import tree
from bert_jax.config import Model
from bert_jax.errors import UserError
from bert_jax.model import padded_vocabulary

Tensors = Mapping[str, np.ndarray]  # by Hugging Face's names

_SHOWN = 12  # faults of one kind in a message


class Name(NamedTuple):
    """One parameter on both sides, with the letters of its axes.

    V vocabulary, W the same padded, D hidden, H heads, h features of a head,
    F feed-forward, P positions, S segments, C classes.
    """

    ours: str
    shape: str
    theirs: str  # `{}` stands for the number of the layer
    their_shape: str


# `*` stands for the part of a layer's name that holds its number.
_ROWS = """
embeddings/token               W D    bert.embeddings.word_embeddings.weight        V D
embeddings/position            P D    bert.embeddings.position_embeddings.weight    P D
embeddings/segment             S D    bert.embeddings.token_type_embeddings.weight  S D
embeddings/norm/scale          D      bert.embeddings.LayerNorm.weight              D
embeddings/norm/bias           D      bert.embeddings.LayerNorm.bias                D
layers/attention/query/kernel  D H h  *.attention.self.query.weight                 D D
layers/attention/query/bias    H h    *.attention.self.query.bias                   D
layers/attention/key/kernel    D H h  *.attention.self.key.weight                   D D
layers/attention/key/bias      H h    *.attention.self.key.bias                     D
layers/attention/value/kernel  D H h  *.attention.self.value.weight                 D D
layers/attention/value/bias    H h    *.attention.self.value.bias                   D
layers/attention/out/kernel    H h D  *.attention.output.dense.weight               D D
layers/attention/out/bias      D      *.attention.output.dense.bias                 D
layers/attention/norm/scale    D      *.attention.output.LayerNorm.weight           D
layers/attention/norm/bias     D      *.attention.output.LayerNorm.bias             D
layers/mlp/up/kernel           D F    *.intermediate.dense.weight                   F D
layers/mlp/up/bias             F      *.intermediate.dense.bias                     F
layers/mlp/down/kernel         F D    *.output.dense.weight                         D F
layers/mlp/down/bias           D      *.output.dense.bias                           D
layers/mlp/norm/scale          D      *.output.LayerNorm.weight                     D
layers/mlp/norm/bias           D      *.output.LayerNorm.bias                       D
pooler/kernel                  D D    bert.pooler.dense.weight                      D D
pooler/bias                    D      bert.pooler.dense.bias                        D
mlm/transform/kernel           D D    cls.predictions.transform.dense.weight        D D
mlm/transform/bias             D      cls.predictions.transform.dense.bias          D
mlm/norm/scale                 D      cls.predictions.transform.LayerNorm.weight    D
mlm/norm/bias                  D      cls.predictions.transform.LayerNorm.bias      D
mlm/bias                       W      cls.predictions.bias                          V
nsp/kernel                     D 2    cls.seq_relationship.weight                   2 D
nsp/bias                       2      cls.seq_relationship.bias                     2
head/kernel                    D C    classifier.weight                             C D
head/bias                      C      classifier.bias                               C
"""
TABLE = tuple(
    Name(*re.split(" {2,}", row.replace("*", "bert.encoder.layer.{}")))
    for row in _ROWS.strip().splitlines()
)
ENCODER = ("embeddings", "layers")  # parts that every file must have


def part(name: str) -> str:
    """The part of the model that one of our names belongs to, such as `mlm`."""
    return name.split("/")[0]


def parts_of(names: Iterable[str]) -> set[str]:
    """Our parts of which Hugging Face's names hold at least one tensor."""
    there = set(names)
    return {part(row.ours) for row in TABLE if row.theirs in there} | set(ENCODER)


def _sizes(model: Model, classes: int) -> dict[str, int]:
    return {
        "V": model.vocab_size,
        "W": padded_vocabulary(model),
        "D": model.hidden,
        "H": model.heads,
        "h": model.hidden // model.heads,
        "F": model.mlp,
        "P": model.positions,
        "S": model.segments,
        "C": classes,
        "2": 2,
    }


def _shape(letters: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[letter] for letter in letters.split())


def from_theirs(
    tensors: Tensors, model: Model, parts: Iterable[str], classes: int, where: str
) -> dict[str, Any]:
    """Our parameters from Hugging Face's tensors.

    Args:
      tensors: by name, floating, nothing else among them.
      model: sizes.
      parts: of the model that must be there, such as `layers` and `mlm`.
      classes: of the `head`, if that is one of the parts.
      where: file and config, for the message.

    Returns:
      Nested dict of float32 arrays; rows that pad the vocabulary are zero.

    Raises:
      UserError: lists together all names that are missing, unexpected, or whose
        shape is not that of the config.
    """
    sizes, wanted, parts = _sizes(model, classes), {}, set(parts)
    for row in TABLE:
        if part(row.ours) in parts:
            shape = _shape(row.their_shape, sizes)
            wanted |= dict.fromkeys(_names(row, model), shape)
    _check(tensors, wanted, where)
    flat = {}
    for row in TABLE:
        if part(row.ours) in parts:
            shape = _shape(row.shape, sizes)
            each = [_ours(tensors[n], row, shape) for n in _names(row, model)]
            flat[row.ours] = np.stack(each) if "{}" in row.theirs else each[0]
    return tree.unflatten(flat)


def to_theirs(params: Any, model: Model, classes: int) -> dict[str, np.ndarray]:
    """Hugging Face's tensors from our parameters; the inverse of `from_theirs`.

    Args:
      params: nested dict of arrays that this process can read in full.
      model: sizes.
      classes: of the `head`, if there is one.

    Returns:
      float32 arrays by name, contiguous, without the vocabulary's padding.
    """
    sizes, flat = _sizes(model, classes), tree.flatten(params)
    tensors = {}
    for row in TABLE:
        if row.ours not in flat:
            continue
        whole = np.asarray(flat[row.ours])
        each = whole if "{}" in row.theirs else [whole]
        shape = _shape(row.their_shape, sizes)
        for name, array in zip(_names(row, model), each, strict=True):
            tensors[name] = _theirs(array, row, shape)
    return tensors


def _names(row: Name, model: Model) -> list[str]:
    if "{}" not in row.theirs:
        return [row.theirs]
    return [row.theirs.format(layer) for layer in range(model.layers)]


def _ours(array: np.ndarray, row: Name, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(array, np.float32)
    if row.ours.endswith("kernel"):
        array = array.T
    if row.shape.startswith("W"):
        rows = shape[0] - len(array)
        array = np.pad(array, [(0, rows)] + [(0, 0)] * (array.ndim - 1))
    return array.reshape(shape)


def _theirs(array: np.ndarray, row: Name, shape: tuple[int, ...]) -> np.ndarray:
    if row.shape.startswith("W"):
        array = array[: shape[0]]
    if row.ours.endswith("kernel"):
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
    if lines:
        raise UserError(
            f"{where}: these tensors are not those of a BERT of that config:\n"
            + "\n".join(lines)
        )


def from_tf1(name: str) -> str:
    """Hugging Face's name of a variable of the original TensorFlow code."""
    name = re.sub(r"/layer_(\d+)/", r".layer.\1.", name).replace("/", ".")
    name = re.sub(r"_embeddings$", "_embeddings.weight", name)
    name = re.sub(r"\.(kernel|gamma|output_weights)$", ".weight", name)
    return re.sub(r"\.(beta|output_bias)$", ".bias", name)
