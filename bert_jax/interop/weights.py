"""Tensors of Hugging Face's weight files; no code from a file is ever run."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from bert_jax.errors import UserError, refuse_pointer
from bert_jax.interop.source import read_json

_FLOATING = {"F64", "F32", "F16", "BF16"}
_WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "model.")
# Arrays of fixed numbers that some versions save.
_CONSTANTS = ("embeddings.position_ids", "embeddings.token_type_ids")
_SHOWN = 12  # names in a message


def read(directory: Path) -> dict[str, np.ndarray]:
    """Floating tensors by name, without the prefixes of training wrappers.

    Raises:
      UserError: there is no weights file, or one is damaged, a pointer of git-lfs,
        quantized, or holds numbers that are not finite.
    """
    tensors = dict(_files(directory))
    for start in _WRAPPERS * 2:  # torch.compile within DataParallel, or around it
        if tensors and all(name.startswith(start) for name in tensors):
            tensors = {n.removeprefix(start): array for n, array in tensors.items()}
    bad = [name for name, array in tensors.items() if not np.isfinite(array).all()]
    if bad:
        raise UserError(
            f"{directory}: {len(bad)} tensors hold numbers that are not finite (NaN or "
            f"infinity): {_list(bad)}; its training diverged, or it was saved in too "
            "narrow a format; use another checkpoint of it"
        )
    return tensors


def drop(
    tensors: Mapping[str, np.ndarray], pattern: str, where: Path
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors without those that a pattern is found in, and the latter's names.

    Raises:
      UserError: it is no regular expression, or is found in no name.
    """
    if not pattern:
        return dict(tensors), []
    try:
        left_out = [name for name in tensors if re.search(pattern, name)]
    except re.error as error:
        raise UserError(f"--drop={pattern}: no regular expression ({error})") from None
    if not left_out:
        raise UserError(
            f"--drop={pattern}: no tensor of {where} has it in its name; they are "
            f"{_list(sorted(tensors))}"
        )
    return {n: a for n, a in tensors.items() if n not in set(left_out)}, left_out


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    return ", ".join(names[:_SHOWN]) + more


def _files(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors of the one file, or of its shards."""
    for stem, reader in (
        ("model.safetensors", _safetensors),
        ("pytorch_model.bin", _bin),
    ):
        index = directory / f"{stem}.index.json"
        if (directory / stem).is_file():
            yield from reader(directory / stem)
            return
        if index.is_file():
            for file in _shards(index):
                yield from reader(file)
            return
    raise UserError(f"{directory}: no model.safetensors or pytorch_model.bin there")


def _shards(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(name, str) for name in shards.values()
    ):
        raise UserError(f"{index}: its weight_map does not give tensors their files")
    files = [index.parent / Path(name).name for name in sorted(set(shards.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{index}: {len(missing)} of the {len(files)} files that it names are "
            f"missing: {_list(missing)}; fetch them"
        )
    return files


def _safetensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    refuse_pointer(file)
    try:
        with safetensors.safe_open(file, framework="np") as reader:
            for name in reader.keys():  # noqa: SIM118, not a dict
                if name.endswith(_CONSTANTS):
                    continue
                _check_type(file, name, reader.get_slice(name).get_dtype())
                yield name, np.asarray(reader.get_tensor(name), np.float32)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{file}: damaged or cut short ({error}); fetch it again"
        ) from None


def _check_type(file: Path, name: str, dtype: str) -> None:
    if dtype not in _FLOATING:
        raise UserError(
            f"{file}: {name} is of type {dtype}, but only weights of "
            f"{', '.join(sorted(_FLOATING))} can be read; quantized weights have to be "
            "converted to one of these first"
        )


def _bin(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    refuse_pointer(file)
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{file}: reading it needs PyTorch; pip install torch, or save the model "
            "as model.safetensors"
        ) from None
    try:
        # Only tensors: a pickle that names any other code is refused, not run.
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model_state_dict"):
            found = found.get(key, found)
        tensors = {
            name: tensor
            for name, tensor in found.items()
            if not name.endswith(_CONSTANTS)
        }
        other = {n: t.dtype for n, t in tensors.items() if not t.is_floating_point()}
        tensors = {n: t.float().numpy() for n, t in tensors.items() if n not in other}
    except Exception as error:  # the library raises a dozen kinds
        first = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{file}: no PyTorch checkpoint of plain tensors, or damaged ({first}); "
            "save the model as model.safetensors"
        ) from None
    for name, dtype in other.items():
        _check_type(file, name, str(dtype))
    yield from tensors.items()
