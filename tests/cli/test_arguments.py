"""The shared flags of all commands, and how the program ends."""

import errno
import logging
import os
import subprocess
import sys
import types
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

from bert_jax import __main__, config
from bert_jax.cli import arguments
from bert_jax.errors import UserError

TINY = str(Path(__file__).parents[2] / "configs" / "bert_tiny.py")
EXAMPLE = f"bert-jax train --config={TINY} --workdir=runs/tiny"


def parse(*argv: str, required: bool = True) -> Namespace:
    def options(parser: ArgumentParser) -> None:
        parser.add_argument("--num-workers", type=int, default=3)

    return arguments.parse(argv, "Trains.", EXAMPLE, options, required)


def test_flags_and_overrides_in_any_order() -> None:
    args = parse(
        *("--config.seed=5", f"--config={TINY}:smoke", "--json", "--workdir", "w"),
        *("--config.optim.peak_rate", "1e-3", "--num-workers=2"),
    )
    assert (args.workdir, args.json, args.num_workers) == ("w", True, 2)
    assert (args.config.seed, args.config.optim.peak_rate) == (5, 1e-3)
    assert args.config.steps == 8


def test_a_negative_value_after_a_space() -> None:
    args = parse(
        "--config", TINY, "--config.mesh.data", "1", "--config.mesh.fsdp", "-1"
    )
    assert (args.config.mesh.data, args.config.mesh.fsdp) == (1, -1)


def test_a_saved_run_brings_its_config(tmp_path: Path) -> None:
    saved = config.load(TINY, ["seed=11"])
    (tmp_path / "config.json").write_text(config.to_json(saved))
    assert parse(f"--workdir={tmp_path}", required=False).config == saved
    changed = parse(f"--workdir={tmp_path}", "--config.seed=12", required=False)
    assert changed.config.seed == 12
    assert parse(required=False).config is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--config=NAME", "bert_tiny"]),
        (["--confg=x"], ["--confg", "'--config'"]),
        (["--workdirr=x"], ["'--workdirr'", "'--workdir'"]),
        (["--steps=5"], ["'--steps'", "'--config.steps'"]),
        (["stray"], ["argument 'stray'", "--help"]),
        (["--num-workers=x"], ["--num-workers", "--help"]),
        (["--workdir"], ["--workdir", "--help"]),
        (["--config.steps"], ["--config.steps=VALUE"]),
        (["--config.steps", "--json"], ["--config.steps=VALUE"]),
        (["--workdir="], ["--workdir=", "empty"]),
        (["--workdir", ""], ["--workdir=", "empty"]),
        (["workdir=a"], ["'workdir'", "'--workdir'"]),
    ],
)
def test_a_mistake_names_the_remedy(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert all(word in str(caught.value) for word in words), caught.value


def test_overrides_need_a_config() -> None:
    with pytest.raises(UserError, match=r"--config\.seed=3"):
        parse("--config.seed=3", required=False)


def test_help_shows_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert EXAMPLE in out
    assert out.startswith("usage: bert-jax train [")


def command(monkeypatch: pytest.MonkeyPatch, outcome: object) -> None:
    """Replaces the `train` command by one that returns or raises `outcome`."""

    def main(argv: list[str]) -> object:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    stand_in = types.SimpleNamespace(main=main)
    monkeypatch.setitem(sys.modules, "bert_jax.cli.train", stand_in)


@pytest.mark.parametrize(
    ("outcome", "status", "message"),
    [
        (None, 0, ""),
        (75, 75, ""),
        (UserError("mend it"), 2, "bert-jax: error: mend it\n"),
        (KeyboardInterrupt(), 130, "bert-jax: interrupted\n"),
    ],
)
def test_exit_statuses(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: object,
    status: int,
    message: str,
) -> None:
    command(monkeypatch, outcome)
    assert __main__.main(["train"]) == status
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["free some space"]),
        (ValueError("RESOURCE: No space left on device; x"), ["free some space"]),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), ["/x/y: Permis"]),
    ],
)
def test_a_fault_of_the_machine_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: Exception,
    words: list[str],
) -> None:
    command(monkeypatch, fault)
    assert __main__.main(["train"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("bert-jax: error: ")
    assert all(word in told for word in words), told


def test_platforms_that_jax_does_not_have_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def devices() -> None:
        raise RuntimeError("Unable to initialize backend")

    command(monkeypatch, AssertionError())
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(devices=devices))
    assert __main__.main(["train"]) == 2
    assert "JAX_PLATFORMS=nonsense" in capsys.readouterr().err


def test_what_jax_logs_of_a_plugin_is_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("bert_jax.test")
    logger.addFilter(__main__._on_one_line)
    try:
        raise RuntimeError("no cuFFT")
    except RuntimeError:
        logger.exception("fault of %s", "cuda")
    assert "fault of cuda: no cuFFT" in caplog.text
    assert "Traceback" not in caplog.text


def test_an_argument_that_is_not_utf8_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert __main__.main(["fill", "caf\udce9 [MASK]"]) == 2
    assert r"'caf\udce9 [MASK]' holds bytes that are not" in capsys.readouterr().err


@pytest.mark.parametrize("top", ["0", "-1", "x", "1.5"])
def test_the_number_of_answers_is_above_zero(
    capsys: pytest.CaptureFixture[str], top: str
) -> None:
    assert __main__.main(["fill", "--workdir=nowhere", "a [MASK]", f"--top={top}"]) == 2
    assert "--top: " in capsys.readouterr().err


def test_report_takes_a_run_by_flag_as_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert __main__.main(["report"]) == 2
    assert "bert-jax report RUN" in capsys.readouterr().err
    assert __main__.main(["report", "--workdir=nowhere/a"]) == 2
    assert "nowhere/a" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        __main__.main(["train"])


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_help_lists_every_command_without_loading_jax() -> None:
    code = (
        "import sys, bert_jax.__main__ as program\n"
        "assert program.main(['--help']) == 0\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in __main__.COMMANDS)


def test_a_reader_that_leaves_is_no_error() -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "bert_jax", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.close()
    assert program.stderr.read() == b""
    program.stderr.close()
    assert program.wait() == 0


def test_a_command_starts_with_huge_pages() -> None:
    code = (
        "import os, bert_jax.__main__ as program\n"
        "program.main()\n"
        "print(os.environ['GLIBC_TUNABLES'])\n"
    )
    told = []
    for given in ({}, {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}):
        unset = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        line = [sys.executable, "-c", code, "--version"]
        done = subprocess.run(
            line, stdout=subprocess.PIPE, text=True, env=unset | given, check=True
        )
        told.append(done.stdout.split())
    version = __main__.__version__
    assert told[0] == [version, "glibc.malloc.hugetlb=1"]
    assert told[1] == [version, "glibc.malloc.perturb=0"]
