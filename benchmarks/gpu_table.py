"""What benchmarks/gpu.sh measured, as one JSON file and a table.

Command: python benchmarks/gpu_table.py LINES.jsonl RESULT.json
"""

import datetime
import importlib.metadata
import json
import math
import platform
import sys
from typing import Any

import attention
import jax

PACKAGES = "jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers"


def main() -> None:
    """Reads a line for each measurement."""
    with open(sys.argv[1]) as file:
        results = [json.loads(line) for line in file]
    versions = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    told = {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "versions": versions,
        "results": results,
    }
    with open(sys.argv[2], "w") as file:
        json.dump(told, file, indent=1)
    print(f"{told['device']}, {told['date']}, jax {versions['jax']}")
    print(f"{'':25}{'step (ms)':>10}{'useful/s':>12}{'MFU':>7}  beside PyTorch")
    for result in results:
        for line in lines(result):
            print(f"{result['name']:25}{line}")


def lines(result: dict[str, Any]) -> list[str]:
    """A measurement for a person."""
    if "error" in result:
        return [f" {result['error']}"]
    if "useful_ratio" in result:
        rate = result["bert_jax"]["useful_tokens_per_second"]
        return [f"{'':10}{rate:12,.0f}{'':7}  {result['useful_ratio']:.2f}"]
    if "cells" in result:
        return [
            f" {cell['name']:20} {cell['metric']} {cell['mean']:.4f} "
            f"± {cell['std'] or math.nan:.4f} ({cell['n']} seeds)"
            if cell["n"]
            else f" {cell['name']:20} no run ended"
            for cell in result["cells"]
        ]
    if "peak" in result:
        return [
            f" {attention.TITLE}",
            *(f" {attention.line(r)}" for r in result["rows"]),
        ]
    rate, mfu = result["useful_tokens_per_second"], result["mfu"]
    share = "-" if mfu is None else f"{mfu:.1%}"
    return [f"{result['seconds_median'] * 1e3:10.1f}{rate:12,.0f}{share:>7}"]


if __name__ == "__main__":
    main()
