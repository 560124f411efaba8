"""The compiled training step of several machines, none of which need be here.

python benchmarks/aot.py --config=configs/bert_large.py \
    --config.model.attention_dropout=0.0 --output=aot.json

Runs `bert-jax plan` for each target in a process of its own, one after the other: a
target is a topology or, with a mesh, such as v6e:16x16/data=-1,fsdp=16. Other flags
go to `plan`, which finds the batch by --batch=auto unless they say otherwise. Prints a
Markdown table, a line for a target that fails too; --output takes all that `plan` says.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TARGETS = (
    "v5e:16x16 v5p:4x4x4 v6e:16x16 v6e:16x16/data=-1,fsdp=16 a100:8 h100:8".split()
)
HEADS = (
    "target|rows a chip|attention|memory (GB)|temporaries (GB)|collectives a step|"
    "compute, HBM, network (ms)|MFU at most|bound by"
).split("|")


def main() -> int:
    """Plans every target; the status is 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/bert_large.py")
    parser.add_argument("--targets", nargs="+", default=TARGETS, metavar="NAME[/MESH]")
    parser.add_argument("--output", type=Path, help="a JSON file")
    args, flags = parser.parse_known_args()
    print(row(HEADS), row(["---"] * len(HEADS)), sep="\n", flush=True)
    plans = {}
    for target in args.targets:
        plans[target] = plan(
            target, [f"--config={args.config}", "--batch=auto", *flags]
        )
        print(row([target, *cells(plans[target])]), flush=True)
        if args.output:
            args.output.write_text(json.dumps(plans, indent=1) + "\n")
    return int(any("error" in found for found in plans.values()))


def plan(target: str, flags: list[str]) -> dict[str, Any]:
    """What `plan --json` says of a target, or else `error` and the reason."""
    topology, _, mesh = target.partition("/")
    command = [sys.executable, "-m", "bert_jax", "plan", *flags, "--json"]
    command += [f"--topology={topology}", *([f"--mesh={mesh}"] if mesh else [])]
    last = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        for line in process.stderr:
            last = line.strip()
            print(last, file=sys.stderr, flush=True)
        told = process.stdout.read()
    if process.returncode:
        return {"error": f"status {process.returncode}: {last}"}
    return json.loads(told)


def cells(found: dict[str, Any]) -> list[str]:
    """A line of the table without its target."""
    if "error" in found:
        return [found["error"], *[""] * (len(HEADS) - 2)]
    used, limit = found["hbm_used_bytes"], found["hbm_bytes"]
    start = [str(found["batch_per_chip"]), found["attention"]]
    if not found["fits"]:
        needs = f"{used / 1e9:.1f}" if used else "more"
        return [*start, f"{needs} of {limit / 1e9:.1f}: does not fit", *[""] * 5]
    moved = [
        f"{total['count']} {kind}, {total['bytes'] / 1e9:.2f} GB"
        for kind, total in found["collectives"].items()
    ]
    return [
        *start,
        f"{used / 1e9:.1f} of {limit / 1e9:.1f}",
        f"{(used - found['state_bytes']) / 1e9:.1f}",
        "; ".join(moved) or "none",
        ", ".join(f"{s * 1e3:.0f}" for s in found["seconds"].values()),
        f"{found['mfu_roofline']:.0%}",
        found["bound"],
    ]


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
