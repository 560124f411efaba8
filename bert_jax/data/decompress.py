"""The bytes of a file, decompressed on the way if its suffix says so."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from bert_jax.errors import UserError

_FRAMES: dict[str, Callable[[], Any]] = {
    ".bz2": bz2.BZ2Decompressor,
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
SUFFIXES = tuple(_FRAMES)

_CHUNK = 1 << 18  # [bytes] read at a time, compressed or not
_DAMAGE = (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError)


def chunks(path: str) -> Iterator[bytes]:
    """Streams the decompressed content of a file, a piece at a time.

    Raises:
      UserError: the file cannot be read, or is corrupt or cut short.
    """
    frames = next((_FRAMES[end] for end in SUFFIXES if path.endswith(end)), None)
    try:
        with open(path, "rb") as file:
            pieces = iter(lambda: file.read(_CHUNK), b"")
            yield from _decompress(pieces, frames) if frames else pieces
    except _DAMAGE as error:
        raise UserError(
            f"{path}: corrupt or cut short ({error}); fetch or compress it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _decompress(
    pieces: Iterator[bytes], make_frame: Callable[[], Any]
) -> Iterator[bytes]:
    """All frames, to the last byte.

    The file objects of these libraries end without a word at a frame that is cut
    short (.zst) or after which something unreadable follows (.xz).
    """
    frame = None
    for piece in pieces:
        while piece:
            if frame is None:
                piece = piece.lstrip(b"\0")  # padding, allowed between frames
                frame = make_frame() if piece else None
                continue
            yield frame.decompress(piece)
            piece = b""
            if frame.eof:
                piece, frame = frame.unused_data, None
    if frame:
        raise EOFError("the last frame has no end")
