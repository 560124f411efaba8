"""Learning curves of several runs in one PNG; `train` draws those of its own.

Command: python benchmarks/curves.py --output=docs/curves.png RUN [RUN ...]
         python benchmarks/curves.py --output=docs/study.png --sweeps SWEEP [SWEEP ...]

With --sweeps, a panel for each `bert-jax sweep` and a line for each of its settings:
the held-out score over the steps, mean and standard deviation of its seeds.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bert_jax.curves import draw
from bert_jax.log import read_metrics


def main() -> None:
    """Draws the runs below one another, or the sweeps beside one another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="directories of runs, or of sweeps")
    parser.add_argument("--output", required=True, help="PNG file")
    parser.add_argument("--sweeps", action="store_true", help="RUN are sweeps")
    args = parser.parse_args()
    (draw_sweeps if args.sweeps else draw)(args.runs, args.output)


def draw_sweeps(sweeps: Sequence[str], path: str) -> None:
    """A panel for each sweep; see above."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(sweeps), 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(sweeps), squeeze=False)[0]
    for panel, sweep in zip(panels, sweeps, strict=True):
        for setting in sorted({run.parent for run in Path(sweep).glob("*/seed=*")}):
            steps, scores = held_out(setting)
            mean = scores.mean(0)
            spread = scores.std(0, ddof=1) if len(scores) > 1 else 0 * mean
            panel.plot(steps, mean, "o-", markersize=3, label=setting.name)
            panel.fill_between(steps, mean - spread, mean + spread, alpha=0.15)
        panel.set(title=Path(sweep).name, xlabel="step", ylabel="score on the dev set")
        panel.legend()
    figure.savefig(path)


def held_out(setting: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps [S] and scores [seed, S] of a setting's evaluations."""
    seeds = [
        {x["step"]: x["eval_score"] for x in read_metrics(run) if "eval_score" in x}
        for run in sorted(setting.glob("seed=*"))
    ]
    steps = sorted(set.intersection(*(set(found) for found in seeds)))
    return np.array(steps), np.array([[found[s] for s in steps] for found in seeds])


if __name__ == "__main__":
    main()
