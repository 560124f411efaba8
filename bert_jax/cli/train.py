"""`bert-jax train`: pretrain, or continue."""

import json
import os
import shlex
from collections.abc import Sequence

from bert_jax.cli.arguments import parse
from bert_jax.errors import Stopped, UserError

EXAMPLE = "bert-jax train --config=configs/bert_tiny.py --workdir=runs/tiny"


def main(argv: Sequence[str]) -> int:
    """Trains the config's model in the run directory and prints how it ended."""
    args = parse(argv, "Pretrain, or continue a run that was stopped.", EXAMPLE)
    if not args.workdir:
        raise UserError("--workdir=DIR is missing: the run directory")
    from bert_jax import distributed, remote
    from bert_jax.rundir import finished
    from bert_jax.train import train
    from bert_jax.watch import Watch

    distributed.use_all_cores()
    distributed.keep_compiled()
    distributed.start(os.environ)
    before = finished(args.workdir)
    try:
        watched = Watch(args.config.hang_after)
        with watched as watch, remote.pushed(args.workdir):
            summary = train(args.config, args.workdir, watch)
    except Stopped:
        distributed.leave()
        raise
    primary = distributed.index() == 0
    distributed.leave()
    if not primary:
        return 0
    if args.json:
        print(json.dumps(summary))
        return 0
    workdir = remote.where(args.workdir)
    done = "was finished already" if before else "finished"
    print(f"{workdir} {done}: {summary['steps']} steps, {summary['seconds']:.0f} s")
    if "score" in summary:
        print(
            f"  {summary['score_name']} {summary['score']:.4f} on the dev set, at step "
            f"{summary['best_step']}"
        )
        return 0
    guess = "by the lengths of the segments or the commoner class alone"
    rows = [
        ("masked tokens", "eval_mlm_loss", "unigram_loss", "nats, by frequency alone"),
        ("", "eval_mlm_accuracy", None, "right"),
        ("next tokens", "eval_ltr_loss", "unigram_loss", "nats, by frequency alone"),
        ("", "eval_ltr_accuracy", None, "right"),
        ("replaced ones", "eval_rtd_loss", None, ""),
        ("", "eval_rtd_accuracy", None, "right"),
        ("next sentence", "eval_nsp_accuracy", "eval_nsp_baseline", guess),
        ("sentence order", "eval_sop_accuracy", "eval_sop_baseline", guess),
    ]
    for label, name, baseline, meaning in rows:
        if name in summary:
            known = baseline in summary  # older runs lack some
            against = f"  ({summary[baseline]:.4f} {meaning})" if known else ""
            print(f"  {label:14} {name:18} {summary[name]:.4f}{against}")
    if "eval_set_md5" not in summary:
        print("  not evaluated: no text is held out (config.data.eval_share=0)")
    if "eval_mlm_loss" in summary:
        run = shlex.quote(f"--workdir={workdir}")
        print(f'try: bert-jax fill {run} "a sentence with a [MASK]"')
    return 0
