"""The bytes of a file, decompressed on the way if its suffix says so."""

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from bert_jax.errors import UserError

SUFFIXES = (".gz", ".xz", ".zst")

_CHUNK = 1 << 20  # [bytes]
_DAMAGE = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError)


def chunks(path: str) -> Iterator[bytes]:
    """Streams the decompressed content of a file in pieces of about 1 MiB.

    Raises:
      UserError: the file cannot be read, or is corrupt or cut short.
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        if path.endswith(".zst"):
            yield from _zstandard(path)
            return
        opener = openers.get(path[-3:], open)
        with opener(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except _DAMAGE as error:
        raise UserError(
            f"{path}: corrupt or cut short ({error}); fetch or compress it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _zstandard(path: str) -> Iterator[bytes]:
    # stream_reader takes a cut file for a whole one; decompressobj can tell.
    decompressor = zstandard.ZstdDecompressor()
    frame = None
    with open(path, "rb") as file:
        while raw := file.read(_CHUNK):
            while raw:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(raw)
                raw = b""
                if frame.eof:
                    raw, frame = frame.unused_data, None
    if frame:
        raise EOFError("the last frame has no end")
