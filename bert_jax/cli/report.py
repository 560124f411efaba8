"""`bert-jax report`: one HTML page that compares runs."""

import argparse
from collections.abc import Sequence

from bert_jax.cli.arguments import parse
from bert_jax.errors import UserError

EXAMPLE = "bert-jax report --out=study.html runs/base runs/sst2-sweep"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run directory, or one with runs in it, such as a sweep's",
    )
    parser.add_argument(
        "--out", metavar="FILE", default="report.html", help="default: report.html"
    )


def main(argv: Sequence[str]) -> int:
    """Writes the page, and says what is on it."""
    about = "Compare runs on one HTML page: scores, settings, curves, cost."
    args = parse(argv, about, EXAMPLE, _options, False, remote_workdir=False)
    if args.workdir or args.config:
        raise UserError("report takes runs without a flag: bert-jax report RUN...")
    from bert_jax import log, report

    cells = report.read(args.runs)
    log.write_text(args.out, report.page(cells))
    if args.json:
        print(log.to_json({"out": args.out, "cells": report.facts(cells)}))
        return 0
    count = sum(len(cell.runs) for cell in cells)
    print(f"{args.out}: runs {count}, settings {len(cells)}")
    return 0
