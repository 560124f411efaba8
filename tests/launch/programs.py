"""Programs that the tests of the launchers need beside Python."""

import os
import shutil

import pytest


def need(program: str, package: str) -> str:
    """The path of a program; without it the test skips, and in CI it fails."""
    path = shutil.which(program)
    if path is None and os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{program} is missing: apt-get install {package}", pytrace=False)
    return path or pytest.skip(f"needs {program}: apt-get install {package}")
