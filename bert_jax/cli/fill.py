"""`bert-jax fill`: what a trained model would put in place of [MASK]."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.cli.arguments import parse, positive
from bert_jax.config import Config
from bert_jax.data.tokenizer import TextTokenizer, load_tokenizer
from bert_jax.errors import UserError

EXAMPLE = 'bert-jax fill --workdir=runs/tiny "The [MASK] sat on the mat."'


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", help="text with at least one [MASK]")
    parser.add_argument(
        "--top", type=positive, default=5, metavar="N", help="answers shown for each"
    )


def main(argv: Sequence[str]) -> int:
    """Prints the most probable tokens for every [MASK] in a text."""
    about = "Let a trained model fill in the [MASK]s of a text."
    args = parse(argv, about, EXAMPLE, _options, config_required=False)
    from bert_jax.cli.restore import require

    config = require(args)
    tokenizer = load_tokenizer(str(Path(args.workdir) / "tokenizer"), config.tokenizer)
    answers = _fill(config, args.workdir, tokenizer, args.text, args.top)
    if args.json:
        print(json.dumps(answers))
        return 0
    for i, answer in enumerate(answers):
        if len(answers) > 1:
            print(f"[MASK] {i + 1}")
        for choice in answer:
            print(f"{choice['probability']:8.4f}  {choice['token']}")
    return 0


def _fill(
    config: Config, workdir: str, tokenizer: TextTokenizer, text: str, top: int
) -> list[list[dict[str, Any]]]:
    import jax

    from bert_jax.cli.restore import local_mesh, parameters
    from bert_jax.config import Objective
    from bert_jax.tasks.pretrain import pretrain

    vocabulary = tokenizer.vocabulary()
    batch = _batch(tokenizer, text, config)
    # Masked tokens alone: a model that has no other head can fill in, too.
    kind, size = config.objective.kind, config.objective.generator_size
    if kind == "ltr":
        raise UserError(
            f"{workdir}: was trained with config.objective.kind=ltr, to predict next "
            "tokens; fill needs a model of masked ones"
        )
    alone = Objective(pair="none", kind=kind, generator_size=size)
    task = pretrain(config.model, alone)
    mesh = local_mesh(config, copies=1)
    _, params = parameters(workdir, task.init, mesh)
    logits = jax.jit(task.predict)(params, batch)["mlm_logits"][0]
    share = np.asarray(jax.nn.softmax(logits, axis=-1))[:, : vocabulary.size]
    best = np.argsort(-share, axis=-1)[:, :top]
    return [
        [
            {"token": tokenizer.token(int(i)), "probability": float(row[i])}
            for i in indices
        ]
        for row, indices in zip(share, best, strict=True)
    ]


def _batch(
    tokenizer: TextTokenizer, text: str, config: Config
) -> dict[str, np.ndarray]:
    """One row for the text, in which every [MASK] is to be predicted."""
    vocabulary = tokenizer.vocabulary()
    token = tokenizer.encode(text, special=True)
    if vocabulary.mask not in token:
        raise UserError(
            f"there is no [MASK] in {text!r}; write one where a word is missing"
        )
    token = [vocabulary.cls, *token, vocabulary.sep]
    if len(token) > config.model.positions:
        limit = config.model.positions
        raise UserError(
            f"the text has {len(token)} tokens, the model takes {limit}; shorten it"
        )
    row = np.array([token], np.int32)
    place = np.flatnonzero(row[0] == vocabulary.mask).astype(np.int32)[None]
    return {
        "token": row,
        "segment": np.zeros_like(row),
        "position": np.arange(row.shape[1], dtype=np.int32)[None],
        "example": np.ones_like(row),
        "mlm_position": place,
        "mlm_label": np.full_like(place, vocabulary.mask),
        "mlm_weight": np.ones(place.shape, np.float32),
    }
