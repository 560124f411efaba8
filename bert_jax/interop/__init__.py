"""Weights of other programs, in and out: Hugging Face and the original TensorFlow."""

import re
from pathlib import Path
from types import ModuleType

from bert_jax.errors import UserError
from bert_jax.interop import huggingface, tf1
from bert_jax.interop.source import AS_STATED, Choices, Described, Source

__all__ = ["Choices", "Described", "Source", "describe", "load"]


def load(directory: str | Path, choices: Choices = AS_STATED) -> Source:
    """Reads the model in a directory, whichever of the known programs wrote it.

    Args:
      directory: of Hugging Face's `save_pretrained` (`config.json`), or a released
        checkpoint of the original code (`bert_config.json`).
      choices: what is decided in spite of its files.

    Returns:
      Config, parameters and tokenizer.

    Raises:
      UserError: no such model there, a damaged file, or an architecture that is not
        BERT's; no code from a file is ever run.
    """
    return _format(Path(directory)).load(Path(directory), choices)


def describe(directory: str | Path) -> Described:
    """`load` without the parameters, which may be large."""
    return _format(Path(directory)).describe(Path(directory))


def _format(directory: Path) -> ModuleType:
    if (directory / "config.json").is_file():
        return huggingface
    if (directory / "bert_config.json").is_file():
        return tf1
    if not directory.exists():
        hint = "give the directory of a model"
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(directory)):
            hint = (
                "models are read from directories; for a name on the Hugging Face Hub "
                f"run `hf download {directory} --local-dir=DIR`, then give DIR"
            )
        raise UserError(f"{directory}: no model there, and no such directory; {hint}")
    raise UserError(
        f"{directory}: no model there; give a directory with config.json and "
        "model.safetensors (Hugging Face), or with bert_config.json, vocab.txt and "
        "bert_model.ckpt.* (the original release)"
    )
