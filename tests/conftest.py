"""Eight fake devices, strict JAX, and type checks of every bert_jax signature."""

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything imports JAX. Subprocesses of a test inherit these.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Most of the time goes into compiling small programs, so LLVM optimizes them little.
# XLA's own passes are the same. `.ci/run` sets 0 for the tests that start whole runs,
# and `as_users_compile` is for those that look at what the compiler makes.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import beartype
import hypothesis
import jaxtyping
import pytest

# Shapes and types of every call are checked, an int being a float as for pyright.
# The hook takes the checker by an importable name, so it gets a module to live in.
_checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
_inner: dict[Any, Any] = {}


def _check(signature: Any) -> Any:
    """Checks what jaxtyping makes of a function's signature, a function of its own.

    A function inside another is new at each call of that one: it is checked as it was.
    """
    if "<locals>" not in signature.__qualname__:
        return _checked(signature)
    known = signature.__module__, signature.__qualname__, signature.__code__.co_varnames
    if known not in _inner:
        _inner[known] = _checked(signature)
    return _inner[known]


_checker: Any = types.ModuleType("bert_jax_checker")
_checker.check = _check
sys.modules[_checker.__name__] = _checker
jaxtyping.install_import_hook("bert_jax", "bert_jax_checker.check")

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
SHARED = Path(__file__).parents[2] / "shared" / "data"

hypothesis.settings.register_profile(
    "bert_jax",
    deadline=None,
    derandomize=IN_CI,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("bert_jax")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what asks for the real data, before -m selects by markers."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared") and not SHARED.is_dir():
        if IN_CI:
            pytest.fail("../shared/data is missing, and CI may not skip", pytrace=False)
        pytest.skip("needs the real data in ../shared/data")


@pytest.fixture
def as_users_compile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All optimizations are on, in programs that the test starts as well."""
    import jax

    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; who asks for it gets the marker `shared`."""
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def devices() -> None:
    import jax

    assert jax.device_count() == 8, "the fake devices were asked for too late"
