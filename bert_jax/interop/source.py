"""What is read from another program's files, whichever it was."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.config import Model, TaskSettings, Tokenizer
from bert_jax.data.tokenizer import TextTokenizer, load_tokenizer
from bert_jax.errors import UserError


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


def read_model(
    file: Path, values: Mapping[str, Any], activations: Mapping[str, str]
) -> Model:
    """Sizes and numerics from a config in the names of Devlin et al.'s release.

    Args:
      file: for messages.
      values: its content; a key that the original release lacks may be missing.
      activations: name there -> our name.

    Returns:
      A float32 model, as those programs compute; nothing is assumed that a file says.

    Raises:
      UserError: a key is missing, of another type, or names what is not BERT's.
    """
    names = {
        "vocab_size": "vocab_size",
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp": "intermediate_size",
        "positions": "max_position_embeddings",
        "segments": "type_vocab_size",
    }
    rates = {
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "norm_epsilon": "layer_norm_eps",
        "init_std": "initializer_range",
    }
    missing = [name for name in names.values() if type(values.get(name)) is not int]
    if missing:
        raise UserError(f"{file}: no whole number for {', '.join(missing)}")
    if values["num_attention_heads"] < 1 or (
        values["hidden_size"] % values["num_attention_heads"]
    ):
        raise UserError(
            f"{file}: num_attention_heads={values['num_attention_heads']} does not "
            f"divide hidden_size={values['hidden_size']}"
        )
    activation = activations.get(values.get("hidden_act", "gelu"))
    if activation is None:
        raise UserError(
            f"{file}: hidden_act={values['hidden_act']!r} is not supported; BERT has "
            f"one of {', '.join(activations)}"
        )
    numbers = {ours: values[theirs] for ours, theirs in names.items()}
    numbers |= {
        ours: float(values[theirs])
        for ours, theirs in rates.items()
        if theirs in values
    }
    return Model(**numbers, activation=activation, dtype="float32")


def read_tokenizer(path: Path, model: Model, options: Mapping[str, Any]) -> Described:
    """Adds the WordPiece tokenizer in a directory, checked against the model.

    Args:
      path: holds tokenizer.json or vocab.txt.
      model: whose embedding table must have a row for each token.
      options: `do_lower_case`, where a file says so; else the vocabulary tells.

    Raises:
      UserError: no tokenizer there, or one with more tokens than the table has rows.
    """
    lowercase = options.get("do_lower_case")
    if not isinstance(lowercase, bool):
        lowercase = not _cased(path / "vocab.txt")
    settings = Tokenizer(kind="wordpiece", path=str(path), lowercase=lowercase)
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
