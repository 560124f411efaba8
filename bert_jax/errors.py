"""The ways in which a command ends other than well, each with its exit status."""

import contextlib
from pathlib import Path

_POINTER = b"version https://git-lfs.github.com/"


class UserError(Exception):
    """Bad input. The message names the field or file and says what to do.

    The command line prints the message alone, without a traceback, and exits
    with `status`.
    """

    status = 2


class Stopped(UserError):
    """The run was told to stop, and did so at a step that all processes agreed on."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Hung(UserError):
    """Another process could not be reached in time; starting again may help."""

    status = 42


def refuse_pointer(file: Path) -> None:
    """Raises a UserError if git-lfs left its pointer in place of the file."""
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise UserError(
                f"{file}: is a pointer of git-lfs, not the file itself; run `git lfs "
                f"install` and `git lfs pull` in {file.parent}, or download the file"
            )
