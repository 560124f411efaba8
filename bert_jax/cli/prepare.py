"""`prepare`: raw text into a token store."""

import json
import sys
import time
from argparse import ArgumentParser

from bert_jax import remote
from bert_jax.cli.arguments import parse
from bert_jax.data.prepare import prepare_store
from bert_jax.data.tokenizer import UNKNOWN_LIMIT
from bert_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Trains or loads the tokenizer, encodes the corpus, prints what came out."""
    args = parse(
        argv,
        "Turn raw text into a token store, training a tokenizer where none is given.",
        "python -m bert_jax prepare --config=configs/bert_tiny.py --workdir=runs/tiny "
        "--config.data.source='text/*.txt'",
        _options,
    )
    directory = args.config.data.store
    if not directory:
        if not args.workdir:
            raise UserError("--workdir=DIR is missing; the store goes to DIR/store")
        directory = str(remote.where(args.workdir, remote.STORE))
    workers = args.config.data.num_workers
    if args.num_workers is not None:
        workers = args.num_workers
    if workers < 0:
        raise UserError(f"--num-workers={workers}: must not be below 0; 0 is all cores")
    config = args.config
    if config.sized_elsewhere:
        from bert_jax.resolve import with_weights

        config = with_weights(config)
    manifest = prepare_store(config, directory, workers, _Reporter())
    result = {**manifest, "store": directory, "megabytes_per_second": _speed(manifest)}
    print(_summary(result))
    if args.json:
        print(json.dumps(result))
    return 0


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--num-workers",
        type=int,
        metavar="N",
        help="processes; 0 is all cores (overrides config.data.num_workers)",
    )


class _Reporter:
    """Prints progress to stderr, at most once a second."""

    def __init__(self) -> None:
        self._last = -1.0

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._last >= 1:
            self._last = time.monotonic()
            print(f"prepare: {text}", file=sys.stderr, flush=True)


def _speed(manifest: dict) -> float:
    return round(manifest["text_bytes"] / 1e6 / manifest["seconds"]["encoding"], 2)


def _summary(result: dict) -> str:
    seconds = result["seconds"]
    skipped = ", ".join(
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in result["skipped"].items()
    )
    already = " (already prepared, left as it is)" if result["already_prepared"] else ""
    return (
        f"token store   {result['store']}{already}\n"
        f"text          {result['text_bytes'] / 1e6:,.1f} MB from "
        f"{', '.join(result['source'])}\n"
        f"documents     {result['documents']:,}\n"
        f"sentences     {result['sentences']:,}\n"
        f"tokens        {result['tokens']:,} of {result['dtype']}\n"
        f"vocabulary    {result['vocabulary']['size']:,} "
        f"({result['tokenizer']['kind']}, {result['vocabulary']['hash'][:12]})\n"
        f"{_korean(result)}"
        f"{_unknown(result)}"
        f"skipped       {skipped or 'nothing'}\n"
        f"time          {seconds['tokenizer']:.1f} s for the tokenizer, "
        f"{seconds['encoding']:.1f} s for the text "
        f"({result['megabytes_per_second']:.1f} MB/s)"
    )


def _korean(result: dict) -> str:
    """The line on what a new tokenizer does to Korean, where the text is Korean."""
    made_from = result["made_from"]
    if made_from.get("language") != "ko" or "vocab_size" not in made_from:
        return ""
    latin = "kept as they are (tokenizer.lowercase=false, for Korean the default)"
    if result["tokenizer"]["lowercase"]:
        latin = "lowercased without accents (tokenizer.lowercase=true)"
    return f"Korean        syllables are kept whole, Latin letters {latin}\n"


def _unknown(result: dict) -> str:
    """The line on tokens that the vocabulary lacks; none for a store without count."""
    if "unknown_tokens" not in result:
        return ""
    share = result["unknown_tokens"] / result["tokens"]
    line = f"unknown       {share:.2%} of the tokens are [UNK]"
    if share > UNKNOWN_LIMIT:
        line += (
            "; the model learns nothing from them: use a tokenizer made for this text, "
            "or train one on it with a larger config.model.vocab_size"
        )
    return line + "\n"
