"""Arrays written in parts and joined into one file, without holding them all."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.errors import UserError

SUFFIXES = (".npz", ".parquet")


def save(file: Path, content: Mapping[str, np.ndarray]) -> None:
    """Writes one part, whole or not at all.

    Args:
      file: an .npz.
      content: arrays by name; `offset` [n + 1] divides the others into n items, and
        without it each first index is an item.
    """
    draft = file.with_suffix(".tmp")
    arrays: dict[str, Any] = dict(content)
    with draft.open("wb") as stream:
        np.savez(stream, **arrays)
    os.replace(draft, file)


def join(parts: Sequence[Path], output: Path) -> None:
    """Writes the parts, one after another, as one file.

    Args:
      parts: at least one, all with the same names, from `save`.
      output: .npz with the same names, or .parquet with a row for each item.

    Raises:
      UserError: the output cannot be written.
    """
    draft = output.with_name(output.name + ".tmp")
    write = _npz if output.suffix == ".npz" else _parquet
    try:
        write(parts, draft)
        os.replace(draft, output)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(
            f"--output={output}: cannot be written ({error.strerror}); the results "
            "are kept beside it, run the same command again when there is room"
        ) from None


def _npz(parts: Sequence[Path], output: Path) -> None:
    with np.load(parts[0]) as first:
        names = list(first)
    with zipfile.ZipFile(output, "w", allowZip64=True) as archive:
        for name in names:
            rows, base, like = 0, 0, None
            for part in parts:
                like = _member(part, name)
                rows += len(like) - (name == "offset")
            assert like is not None
            shape = (rows + (name == "offset"), *like.shape[1:])
            header = {
                "descr": np.lib.format.dtype_to_descr(like.dtype),
                "fortran_order": False,
                "shape": shape,
            }
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_2_0(stream, header)
                for number, part in enumerate(parts):
                    array = _member(part, name)
                    if name == "offset":
                        array, base = array + base, base + array[-1]
                        array = array[number > 0 :]
                    stream.write(np.ascontiguousarray(array).data)


def _member(part: Path, name: str) -> np.ndarray:
    with np.load(part) as content:
        return content[name]


def _parquet(parts: Sequence[Path], output: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    writer = None
    try:
        for part in parts:
            with np.load(part) as content:
                arrays = dict(content)
            offset = arrays.pop("offset", None)
            columns = {}
            for name, array in arrays.items():
                column: Any = pyarrow.array(array.reshape(-1))
                if array.ndim == 2:
                    column = pyarrow.FixedSizeListArray.from_arrays(
                        column, array.shape[1]
                    )
                if offset is not None:
                    column = pyarrow.LargeListArray.from_arrays(offset, column)
                columns[name] = column
            table = pyarrow.table(columns)
            writer = writer or pyarrow.parquet.ParquetWriter(output, table.schema)
            writer.write_table(table)
    finally:
        if writer:
            writer.close()
