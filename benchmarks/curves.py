"""Learning curves of runs, from their metrics.jsonl, as one PNG.

Command: python benchmarks/curves.py --output=docs/curves.png RUN [RUN ...]
Needs matplotlib, which the package itself does not.
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    """Draws held-out and training loss over the steps, a panel for each run."""
    import matplotlib  # pyright: ignore

    matplotlib.use("Agg")
    from matplotlib import pyplot  # pyright: ignore

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="run directories")
    parser.add_argument("--output", required=True, help="PNG file")
    args = parser.parse_args()
    size = (5 * len(args.runs), 3.6)
    figure, panels = pyplot.subplots(1, len(args.runs), figsize=size, squeeze=False)
    for panel, run in zip(panels[0], args.runs, strict=True):
        text = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        train = [(x["step"], x["mlm_loss"]) for x in lines if x["kind"] == "train"]
        held = [(x["step"], x["eval_mlm_loss"]) for x in lines if x["kind"] == "eval"]
        panel.plot(*zip(*train, strict=True), linewidth=0.8, label="training")
        panel.plot(*zip(*held, strict=True), "o-", markersize=4, label="held out")
        summary = json.loads((Path(run) / "summary.json").read_text(encoding="utf-8"))
        panel.axhline(summary["unigram_loss"], color="gray", linestyle="--")
        panel.annotate(
            "by frequency alone",
            (0, summary["unigram_loss"]),
            textcoords="offset points",
            xytext=(4, 4),
            color="gray",
        )
        panel.set(
            title=Path(run).name, xlabel="step", ylabel="masked-token loss [nats]"
        )
        panel.legend()
    figure.tight_layout()
    figure.savefig(args.output, dpi=110)


if __name__ == "__main__":
    main()
