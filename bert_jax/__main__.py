"""`python -m bert_jax COMMAND ...`, also installed as `bert-jax`."""

import difflib
import errno
import importlib
import io
import keyword
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from bert_jax import __version__
from bert_jax.errors import UserError

# Faults of a file system that no command can foresee at each of its writes.
_FILE_FAULTS = {
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some space, then run the same command again",
    errno.EACCES: "choose another path, or change its permissions",
    errno.EPERM: "choose another path, or change its permissions",
    errno.EROFS: "choose a path that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
}
COMMANDS = {
    "prepare": "turn text into a tokenizer and a token store",
    "train": "pretrain; the same command again continues a stopped run",
    "launch": "run a command as several processes, on SLURM, TPU pods or GKE",
    "sweep": "train with several settings and seeds, and compare the scores",
    "evaluate": "score a run on its held-out text",
    "report": "compare runs on one HTML page: scores, settings, curves, cost",
    "fill": "let a trained model fill in a [MASK]",
    "predict": "let a fine-tuned model label the lines of a file",
    "import": "turn a Hugging Face or original BERT into a run directory",
    "export": "write a run's model for Hugging Face's transformers",
    "extract": "turn the lines of a text file into feature vectors",
    "plan": "compile the step for other machines: memory, speed and cost of a run",
    "bench": "measure the input pipeline (data) or the training step (step)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and turns its outcome into an exit status.

    Args:
      argv: the arguments after the program's name; None is `sys.argv[1:]`.

    Returns:
      0 done, 2 user error (one message, no traceback), 42 a process stood still or
      could not be reached, 75 stopped and saved, 130 interrupted. Anything else is a
      bug and leaves as an exception, with its traceback and status 1.
    """
    if argv is not None:
        return _run(list(argv))[0]
    _use_huge_pages()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of a terminal of any encoding
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("jax._src.xla_bridge").addFilter(_on_one_line)
    trace = ""
    try:
        status, cause = _run(sys.argv[1:])
    except Exception as error:
        status, cause = 1, f"{type(error).__name__}: {error}"
        trace = traceback.format_exc()
    if status and "bert_jax.watch" in sys.modules:
        # Threads of JAX or of a save that failed would wait for other processes.
        sys.modules["bert_jax.watch"].end(status, cause, trace)
    sys.stderr.write(trace)
    return status


def _run(argv: list[str]) -> tuple[int, str]:
    """The exit status, and the cause if it is not 0."""
    # TensorFlow only feeds batches here: no notes at start-up, and no oneDNN, whose
    # note no log level hides.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        _check_encoding(argv)
        status = _dispatch(argv)
        if sys.stdout:  # None where the shell closed it
            sys.stdout.flush()
        return status, ""
    except UserError as error:
        kind = "error: " if error.status == 2 else ""
        print(f"bert-jax: {kind}{error}", file=sys.stderr)
        return error.status, str(error)
    except KeyboardInterrupt:
        print("bert-jax: interrupted", file=sys.stderr)
        return 130, "interrupted"
    except BrokenPipeError:
        # The reader of our output left, as `| head` does. Python flushes stdout
        # once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0, ""
    except Exception as error:
        message = _explain(error)
        if not message:
            raise
        print(f"bert-jax: error: {message}", file=sys.stderr)
        return 2, message


def _on_one_line(record: logging.LogRecord) -> bool:
    """Shorten the traceback that JAX logs for a plugin without its device."""
    if record.exc_info:
        record.msg = f"{record.getMessage()}: {record.exc_info[1]}"
        record.args, record.exc_info = (), None
    return True


def _check_encoding(argv: list[str]) -> None:
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"the argument {ascii(word)} holds bytes that are not UTF-8; write it "
                "in UTF-8, the encoding of texts and paths here"
            ) from None


def _explain(error: Exception) -> str:
    """Return the message for a fault of the user's machine, "" for any other."""
    text, number = str(error), None
    if isinstance(error, OSError):
        number = error.errno
        text = f"{error.filename}: {error.strerror}" if error.filename else text
    if os.strerror(errno.ENOSPC) in text:  # other libraries have errors of their own
        number = errno.ENOSPC
    if number in _FILE_FAULTS:
        return f"{text}; {_FILE_FAULTS[number]}"
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms and "jax" in sys.modules:
        try:
            sys.modules["jax"].devices()
        except Exception:
            return (
                f"JAX_PLATFORMS={platforms}: JAX finds no such device on this machine; "
                "set JAX_PLATFORMS=cpu, or unset it to use what there is"
            )
    return ""


def _use_huge_pages() -> None:
    """Starts the process anew with glibc asking Linux for huge pages, unless it does.

    Each step on a CPU gets its temporary memory from the system and hands it back; at
    4 KiB a page fault that takes up to a quarter of the time. glibc (2.35 and later)
    reads the setting once, before any of our code runs.
    """
    if (
        sys.platform == "linux"
        and sys.executable
        and "GLIBC_TUNABLES" not in os.environ
    ):
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(__version__)
        return 0
    name = argv[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(COMMANDS)}"
        raise UserError(f"no command {name!r}; {hint}")
    # Imported only now: JAX takes seconds to load, and --help must not wait.
    module = name + "_" if keyword.iskeyword(name) else name
    command = importlib.import_module(f"bert_jax.cli.{module}")
    return command.main(argv[1:]) or 0


def _help() -> str:
    rows = "\n".join(f"  {name:10}{line}" for name, line in COMMANDS.items())
    return (
        "usage: bert-jax COMMAND --config=NAME[:VARIANT] --workdir=DIR "
        "[--config.FIELD=VALUE ...]\n\n"
        f"{rows}\n\n"
        "bert-jax COMMAND --help shows the options of a command and an example."
    )


if __name__ == "__main__":
    sys.exit(main())
