"""`bert-jax report`: one HTML page that compares runs."""

import argparse
from collections.abc import Sequence

from bert_jax.cli.arguments import parse
from bert_jax.errors import UserError

EXAMPLE = "bert-jax report --out=study.html runs/base runs/sst2-sweep"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="a run directory, or one with runs in it, such as a sweep's",
    )
    parser.add_argument(
        "--out", metavar="FILE", default="report.html", help="default: report.html"
    )


def main(argv: Sequence[str]) -> int:
    """Writes the page, and says what is on it."""
    about = "Compare runs on one HTML page: scores, settings, curves, cost."
    args = parse(
        argv, about, EXAMPLE, _options, False, remote_workdir=False, load=False
    )
    if args.config or args.overrides:
        flag = "--config" if args.config else f"--config.{args.overrides[0]}"
        raise UserError(f"{flag}: report reads the configs of the runs; leave it out")
    runs = [*([args.workdir] if args.workdir else []), *args.runs]
    if not runs:
        raise UserError("name at least one run directory: bert-jax report RUN...")
    from bert_jax import log, report

    cells = report.read(runs)
    log.write_text(args.out, report.page(cells))
    if args.json:
        print(log.to_json({"out": args.out, "cells": report.facts(cells)}))
        return 0
    count = sum(len(cell.runs) for cell in cells)
    print(f"{args.out}: runs {count}, settings {len(cells)}")
    return 0
