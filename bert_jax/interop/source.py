"""What is read from another program's files, whichever it was."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.config import Model, TaskSettings, Tokenizer
from bert_jax.data.tokenizer import TextTokenizer, kind_of, load_tokenizer
from bert_jax.errors import UserError
from bert_jax.interop.families import Family, narrow


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


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UserError: it cannot be read, or is something else.
    """
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
    sizes = {ours: values[key] for ours, key in keys.items()}
    for part, whole in (("heads", "hidden"), ("layer_groups", "layers")):
        if part in keys and (sizes[part] < 1 or sizes[whole] % sizes[part]):
            raise UserError(
                f"{file}: {keys[part]}={sizes[part]} does not divide "
                f"{keys[whole]}={sizes[whole]}"
            )
    named = values.get(family.activation, next(iter(family.activations)))
    activation = family.activations.get(named)
    if activation is None:
        raise UserError(
            f"{file}: {family.activation}={named!r} is not supported; these models "
            f"have one of {', '.join(family.activations)}"
        )
    numbers: dict[str, Any] = {
        ours: float(values[key]) for ours, key in family.rates.items() if key in values
    }
    if family.segments == (0, 0):
        sizes["segments"] = 0
    if family.lead:
        sizes["positions"] -= lead(family, values)
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


def lead(family: Family, values: Mapping[str, Any]) -> int:
    """Rows of the table of positions that come before the first position's."""
    padding = values.get("pad_token_id")
    return (1 if padding is None else padding) + 1 if family.lead else 0


def read_tokenizer(path: Path, model: Model, options: Mapping[str, Any]) -> Described:
    """Adds the tokenizer in a directory, checked against the model.

    Args:
      path: holds the files of a tokenizer.
      model: whose embedding table must have a row for each token.
      options: `do_lower_case`, where a file says so; else the vocabulary tells.

    Raises:
      UserError: no tokenizer there, or one with more tokens than the table has rows.
    """
    lowercase = options.get("do_lower_case")
    if not isinstance(lowercase, bool):
        lowercase = not _cased(path / "vocab.txt")
    settings = Tokenizer(kind=kind_of(path), path=str(path), lowercase=lowercase)
    tokenizer = load_tokenizer(path, settings)
    size = tokenizer.vocabulary().size
    if size > model.vocab_size:
        raise UserError(
            f"{path}: the vocabulary has {size} tokens, the embedding table only "
            f"vocab_size={model.vocab_size} rows; the tokenizer is another model's"
        )
    return Described(model, settings, tokenizer)


def _cased(vocabulary: Path) -> bool:
    """Whether a vocabulary has words in capitals, apart from tokens like [CLS]."""
    if not vocabulary.is_file():
        return False
    text = vocabulary.read_text(encoding="utf-8", errors="replace")
    return any(line != line.lower() and line[0] != "[" for line in text.splitlines())
