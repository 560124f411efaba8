"""`bert-jax evaluate`: score a run's checkpoint on its held-out text."""

import argparse
import json
import tempfile
from collections.abc import Sequence

from bert_jax.cli.arguments import parse
from bert_jax.errors import UserError

EXAMPLE = "bert-jax evaluate --workdir=runs/tiny"


def main(argv: Sequence[str]) -> int:
    """Prints the held-out metrics of a run's newest checkpoint."""
    args = parse(
        argv,
        "Score the newest checkpoint of a run on its held-out text, or on all "
        "documents of another text, named by --config.data.source.",
        EXAMPLE,
        _options,
        config_required=False,
    )
    if args.goodput:
        return _goodput(args)
    import jax

    from bert_jax import evaluate
    from bert_jax.cli.restore import restore
    from bert_jax.sharding import batch_sharding
    from bert_jax.step import make_eval_step, make_score_step

    with tempfile.TemporaryDirectory(prefix="bert-jax-") as scratch:
        run, step, params = restore(args, scratch)
        # Of those that are there, as the objective may be another than in training.
        needed = jax.eval_shape(run.task.init, jax.random.key(0))
        params = {part: params[part] for part in needed}
        data = run.data.held_out(len(run.config.phases) - 1)
        if data is None:
            raise UserError(
                f"--workdir={args.workdir}: holds no text out, as config.data."
                "eval_share is 0; name other text to score the model on, with "
                "--config.data.source=FILE"
            )
        steps = make_eval_step(run.task, run.mesh), make_score_step(run.task, run.mesh)
        place = batch_sharding(run.mesh)
        scores = evaluate.evaluate(run.task, *steps, params, data, place)
    result = {"step": step, **scores, **data.facts}
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(
                f"{name:20} {value:.4f}"
                if type(value) is float
                else f"{name:20} {value}"
            )
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--goodput",
        action="store_true",
        help="print instead where the time of the run went, restarts included",
    )


def _goodput(args: argparse.Namespace) -> int:
    from bert_jax import goodput

    if not args.workdir:
        raise UserError("--workdir=DIR is missing: the directory of a run")
    found = goodput.account(args.workdir)
    print(json.dumps(found) if args.json else goodput.table(found))
    return 0
