"""How long a first step takes, with and without what an earlier start compiled.

python benchmarks/startup.py --config=configs/bert_base.py --config.data.store=STORE \
    --config.phases[0].batch=8 --config.phases[1].batch=8

Prints JSON. `compile_seconds` is the first call of the training step, which traces,
compiles or reads what is compiled, and starts the step; `start_seconds` is before it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bert_jax.log import read_events


def main() -> None:
    """Runs pairs of starts, each pair with an empty cache of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    args, flags = parser.parse_known_args()
    cold, warm = [], []
    for _ in range(args.pairs):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(first_step(Path(folder), "cold", flags))
            warm.append(first_step(Path(folder), "warm", flags))
    ratios = [a["compile"] / b["compile"] for a, b in zip(cold, warm, strict=True)]
    medians = {
        f"{name}_{kind}_seconds": statistics.median(t[kind] for t in times)
        for name, times in (("cold", cold), ("warm", warm))
        for kind in ("start", "compile")
    }
    print(json.dumps({**medians, "ratio": statistics.median(ratios), "ratios": ratios}))


def first_step(folder: Path, name: str, flags: list[str]) -> dict[str, float]:
    """Seconds of the events of a run that is ended after its first step."""
    workdir = folder / name
    command = [sys.executable, "-m", "bert_jax", "train", f"--workdir={workdir}"]
    environ = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    with subprocess.Popen(
        [*command, "--config.log_every=1", *flags],
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        told = []
        for line in process.stderr:
            told.append(line)
            if line.startswith("step 1/"):
                process.kill()
    events = {e["event"]: e["seconds"] for e in read_events(workdir)}
    if "compile" not in events:
        sys.exit("".join(told))
    return events


if __name__ == "__main__":
    main()
