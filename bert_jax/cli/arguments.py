"""The flags that every command shares, and the overrides of config fields."""

import argparse
import difflib
import itertools
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from bert_jax import config, remote
from bert_jax.config import shipped
from bert_jax.errors import UserError


class _Parser(ArgumentParser):
    """Reports a mistake as UserError, so that all of them look alike."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def positive(text: str) -> int:
    """Read the value of a flag that takes a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def parse(
    argv: Sequence[str],
    description: str,
    example: str,
    options: Callable[[ArgumentParser], None] | None = None,
    config_required: bool = True,
    remote_workdir: bool = True,
    load: bool = True,
) -> Namespace:
    """Reads a command's flags and loads its config.

    Args:
      argv: the arguments after the command's name.
      description: one line for `--help`.
      example: a command line for `--help`; what precedes its first flag or quoted
        text names the command.
      options: adds the command's own arguments.
      config_required: False for commands that read a run back: without --config
        they take `config.json` from --workdir, and the config may stay None.
      remote_workdir: --workdir may be in a bucket.
      load: False for a command that reads the config file itself.

    Returns:
      `workdir` (str or None; of a run in a bucket the folder from `remote.open_run`),
      `json` (bool), the command's own arguments, and
      `config`, the frozen Config with the `--config.a.b=value` overrides applied;
      `config_file` (str or None) and `overrides`, the texts that it was made of.

    Raises:
      UserError: an unknown flag, a missing value, or a config with faults.
      SystemExit: status 0, after `--help`.
    """
    parser = _Parser(
        prog=re.split(r"\s+(?=--|[\"'])", example)[0],
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="NAME[:VARIANT]",
        help=f"preset ({', '.join(shipped.names('configs', '.py'))}), .py file or the "
        "config.json of a run; --config.a.b=VALUE changes one field of it",
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="the run directory; may be gs://BUCKET/PATH"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object on the last line of stdout; logs go to stderr",
    )
    if options:
        options(parser)
    rest, overrides = _take_overrides(argv)
    _check_flags(rest, parser)
    args, unknown = parser.parse_known_args(rest)
    if unknown:
        _reject(unknown[0], parser)
    if args.workdir and remote.is_remote(args.workdir):
        if not (remote_workdir and args.workdir.startswith("gs://")):
            raise UserError(
                f"--workdir={args.workdir}: this command needs a local directory"
                if not remote_workdir
                else f"--workdir={args.workdir}: of all URLs only gs:// can be used"
            )
        args.workdir = remote.open_run(args.workdir)
    args.config_file, args.overrides = args.config, overrides
    if load:
        args.config = _load(args.config, args.workdir, overrides, config_required)
    return args


def _check_flags(argv: Sequence[str], parser: ArgumentParser) -> None:
    """Refuses an empty value."""
    words = list(itertools.takewhile(lambda word: word != "--", argv))
    for word, after in itertools.zip_longest(words, words[1:]):
        flag, equals, value = word.partition("=")
        action = parser._option_string_actions.get(flag)
        if not isinstance(action, argparse._StoreAction):
            continue
        value = value if equals else after
        if value == "":
            raise UserError(f"{flag}= is empty; give it a value, or leave it out")


def _take_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits off `--config.a=b` and `--config.a b`, as texts `a=b`."""
    rest, overrides = [], []
    remaining = list(argv)
    while remaining:
        word = remaining.pop(0)
        if word == "--":  # what follows is text, whatever it looks like
            return [*rest, word, *remaining], overrides
        if not word.startswith("--config."):
            rest.append(word)
            continue
        field = word.removeprefix("--config.")
        if "=" not in field:
            if not remaining or remaining[0].startswith("--"):
                raise UserError(f"{word} needs a value: {word}=VALUE")
            field = f"{field}={remaining.pop(0)}"
        overrides.append(field)
    return rest, overrides


def _reject(word: str, parser: ArgumentParser) -> NoReturn:
    name = word.partition("=")[0]
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    near = difflib.get_close_matches(name, flags, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"see `{parser.prog} --help`"
    field = name.removeprefix("--")
    if field.split(".")[0] in config.Config.__dataclass_fields__:
        hint = f"did you mean '--config.{field}'?"
    kind = "flag" if word.startswith("-") else "argument"
    raise UserError(f"unknown {kind} {name!r}; {hint}")


def _load(
    path: str | None, workdir: str | None, overrides: list[str], required: bool
) -> config.Config | None:
    if path is None and not required and workdir is not None:
        saved = Path(workdir) / "config.json"
        if saved.is_file():
            return config.load(str(saved), overrides, stored=True)
    if path is not None:
        return config.load(path, overrides)
    if required:
        known = ", ".join(shipped.names("configs", ".py"))
        raise UserError(f"--config=NAME is missing: a file, or one of {known}")
    if overrides:
        raise UserError(
            f"--config.{overrides[0]} changes a config, and none is given: add "
            "--config=NAME, or --workdir=DIR of a run"
        )
    return None
