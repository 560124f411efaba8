"""Learning curves of several runs in one PNG; `train` draws those of its own.

Command: python benchmarks/curves.py --output=docs/curves.png RUN [RUN ...]
"""

import argparse

from bert_jax.curves import draw


def main() -> None:
    """Draws the runs below one another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="run directories")
    parser.add_argument("--output", required=True, help="PNG file")
    args = parser.parse_args()
    draw(args.runs, args.output)


if __name__ == "__main__":
    main()
