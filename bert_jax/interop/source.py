"""What is read from another program's files, whichever it was."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.config import Model, TaskSettings, Tokenizer
from bert_jax.data import pretrained
from bert_jax.data.tokenizer import TextTokenizer, kind_of, load_tokenizer
from bert_jax.errors import UserError, refuse_pointer
from bert_jax.interop.families import Family, narrow


class Choices(NamedTuple):
    """What a user decides in spite of the files of a model."""

    lowercase: bool | None = None  # whether text is lowercased; None: as they say
    drop: str = ""  # regular expression; tensors with it in their names are left out
    architecture: str = ""  # class of transformers in place of the one in config.json


AS_STATED = Choices()


class Described(NamedTuple):
    """A model of another program, in our terms, before its weights are read."""

    model: Model
    settings: Tokenizer  # with the path of its file
    tokenizer: TextTokenizer


class Source(NamedTuple):
    """The same with its weights."""

    model: Model
    task: TaskSettings
    params: dict[str, Any]  # nested, of float32 NumPy arrays
    settings: Tokenizer  # with the path of its file
    tokenizer: TextTokenizer
    pair: str  # what its `nsp` part tells: nsp, sop, or none
    dropped: tuple[str, ...] = ()  # names of the tensors that `Choices.drop` left out


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UserError: it cannot be read, or is something else.
    """
    refuse_pointer(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no JSON object")
    return found


def read_model(file: Path, values: Mapping[str, Any], family: Family) -> Model:
    """Sizes and numerics from a config.

    Args:
      file: for messages.
      values: its content; a rate that the original release lacks may be missing.
      family: names of the keys and of the activations.

    Returns:
      A float32 model, as those programs compute; nothing is assumed that a file says.

    Raises:
      UserError: a key is missing, of another type, or names what the family has not.
    """
    keys = family.sizes
    missing = [key for key in keys.values() if type(values.get(key)) is not int]
    if missing:
        raise UserError(f"{file}: no whole number for {', '.join(missing)}")
    small = {key: values[key] for key in keys.values() if values[key] < 1}
    if small:
        shown = ", ".join(f"{key}={value}" for key, value in small.items())
        raise UserError(f"{file}: {shown}, but a size is at least 1")
    sizes = {ours: values[key] for ours, key in keys.items()}
    for part, whole in (("heads", "hidden"), ("layer_groups", "layers")):
        if part in keys and (sizes[part] < 1 or sizes[whole] % sizes[part]):
            raise UserError(
                f"{file}: {keys[part]}={sizes[part]} does not divide "
                f"{keys[whole]}={sizes[whole]}"
            )
    named = values.get(family.activation, next(iter(family.activations)))
    activation = family.activations.get(named) if isinstance(named, str) else None
    if activation is None:
        raise UserError(
            f"{file}: {family.activation}={named!r} is not supported; these models "
            f"have one of {', '.join(family.activations)}"
        )
    numbers: dict[str, Any] = {
        ours: _rate(file, key, values[key], ours)
        for ours, key in family.rates.items()
        if key in values
    }
    if family.segments == (0, 0):
        sizes["segments"] = 0
    if family.lead:
        padding = values.get("pad_token_id")
        if padding is not None and (type(padding) is not int or padding < 0):
            raise UserError(f"{file}: pad_token_id={padding!r} is no id of a token")
        sizes["positions"] -= lead(family, values)
        if sizes["positions"] < 1:
            raise UserError(
                f"{file}: {keys['positions']}={values[keys['positions']]} leaves no "
                f"position after those of pad_token_id={padding}"
            )
    if sizes.get("embedding") == sizes["hidden"]:
        sizes["embedding"] = 0
    model = Model(
        **sizes,
        **numbers,
        activation=activation,
        pooler=family.pooler,
        dtype="float32",
    )
    if narrow(model) not in family.narrow:
        raise UserError(
            f"{file}: {keys['embedding']} equals {keys['hidden']}, and a map between "
            "the two cannot be imported"
        )
    return model


def _rate(file: Path, key: str, value: Any, ours: str) -> float:
    number = type(value) in (int, float) and math.isfinite(value)
    if not number or value < 0 or (value >= 1 and "dropout" in ours):
        below = "in [0, 1)" if "dropout" in ours else "of at least 0"
        raise UserError(f"{file}: {key}={json.dumps(value)} is not a number {below}")
    return float(value)


def lead(family: Family, values: Mapping[str, Any]) -> int:
    """Rows of the table of positions that come before the first position's."""
    padding = values.get("pad_token_id")
    return (1 if padding is None else padding) + 1 if family.lead else 0


def read_tokenizer(path: Path, model: Model, lowercase: bool | None) -> Described:
    """Adds the tokenizer in a directory, checked against the model.

    Args:
      path: holds the files of a tokenizer.
      model: whose embedding table must have a row for each token.
      lowercase: the user's choice against the files; None for what they say.

    Raises:
      UserError: no tokenizer there, or one with more tokens than the table has rows.
    """
    settings = Tokenizer(kind=kind_of(path), path=str(path))
    notes: tuple[str, ...] = ()
    vocabulary = path / "vocab.txt"
    if not pretrained.is_directory(path) and vocabulary.is_file():
        tokens = list(pretrained.read_vocabulary(vocabulary))
        guess, note = pretrained.note_case(path, tokens, lowercase)
        settings, notes = dataclasses.replace(settings, lowercase=guess), (note,)
    tokenizer = load_tokenizer(path, settings, lowercase)
    tokenizer.notes += notes
    settings = dataclasses.replace(settings, lowercase=tokenizer.lowercase)
    size = tokenizer.vocabulary().size
    if size > model.vocab_size:
        raise UserError(
            f"{path}: the vocabulary has {size} tokens, the embedding table only "
            f"vocab_size={model.vocab_size} rows; the tokenizer is another model's"
        )
    return Described(model, settings, tokenizer)
