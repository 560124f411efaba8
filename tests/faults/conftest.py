"""One corpus, one store and one unbroken run of each topology for all fault tests."""

import subprocess
import sys

import pytest

from tests.cli import corpus
from tests.faults import group

STEPS = 72


@pytest.fixture(scope="session")
def flags(tmp_path_factory) -> list[str]:
    """Of a model that takes milliseconds a step, on a store that is prepared."""
    folder = tmp_path_factory.mktemp("faults")
    text = corpus.write(folder / "text.txt")
    common = [
        "--config=configs/bert_tiny.py:smoke",
        f"--config.data.source={text}",
        "--config.data.num_workers=1",
    ]
    subprocess.run(
        [sys.executable, "-m", "bert_jax", "prepare", *common]
        + [f"--config.data.store={folder / 'store'}"],
        cwd=group.ROOT,
        check=True,
        timeout=group.LIMIT,
    )
    return [
        *common,
        f"--config.data.store={folder / 'store'}",
        f"--config.steps={STEPS}",
        "--config.save_every=8",
        "--config.eval_every=12",
        "--config.log_every=1",
        "--config.hang_after=60",
        "--config.keep_last=3",
        "--config.model.hidden=32",
        "--config.model.heads=2",
        "--config.model.mlp=64",
    ]


@pytest.fixture(scope="session")
def unbroken(flags, tmp_path_factory):
    """Topology -> the outcome of a run that nothing befell."""
    known = {}

    def find(count: int, devices: int = 2) -> dict:
        if (count, devices) not in known:
            workdir = tmp_path_factory.mktemp("unbroken") / "run"
            assert group.run(workdir, flags, count, devices) == [0] * count
            known[count, devices] = group.outcome(workdir)
        return known[count, devices]

    return find


@pytest.fixture(scope="package", autouse=True)
def compiled(tmp_path_factory):
    """All runs share what XLA compiled."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield
