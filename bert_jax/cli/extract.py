"""`bert-jax extract`: feature vectors of the lines of a text file."""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_jax.cli.arguments import parse
from bert_jax.errors import UserError

EXAMPLE = (
    "bert-jax extract --workdir=runs/tiny --input=text.txt --output=features.npz "
    "--layers=concat_last_4"
)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        metavar="FILE",
        required=True,
        help="text in config.data.encoding, one item a line; also .bz2 .gz .xz .zst, "
        "or a pipe",
    )
    parser.add_argument(
        "--output", metavar="FILE", required=True, help="an .npz or .parquet to make"
    )
    parser.add_argument(
        "--layers",
        default="last",
        help="last, second_to_last, embeddings, or sum, mean or concat of several: "
        "sum_last_4, concat_all, mean:0,6,12 (default: last)",
    )
    parser.add_argument(
        "--pool",
        default="mean",
        choices=("cls", "mean", "none"),
        help="one vector a line, from [CLS] or all its tokens, or one a token "
        "(default: mean)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens of a line that are read, [CLS] and [SEP] included (default: "
        "what the model takes)",
    )
    parser.add_argument(
        "--batch-tokens", type=int, default=8192, metavar="N", help="default: 8192"
    )


def main(argv: Sequence[str]) -> int:
    """Writes the features of every line of a file."""
    about = "Turn the lines of a text file into feature vectors."
    args = parse(argv, about, EXAMPLE, _options, config_required=False)
    from bert_jax.distributed import use_all_cores

    use_all_cores()
    import jax

    from bert_jax.arrays import SUFFIXES
    from bert_jax.cli.restore import local_mesh, parameters, require
    from bert_jax.data.tokenizer import load_tokenizer
    from bert_jax.extract import Encoder, Job, extract, select
    from bert_jax.model import Bert
    from bert_jax.model.parts import of_encoder

    config = require(args)
    limit = config.model.positions
    length = limit if args.max_length is None else args.max_length
    if not 3 <= length <= limit:
        raise UserError(f"--max-length={length}: 3 to {limit}, the model's positions")
    if args.batch_tokens < 1:
        raise UserError(f"--batch-tokens={args.batch_tokens}: must be above 0")
    source, output = Path(args.input), Path(args.output)
    if output.suffix not in SUFFIXES:
        raise UserError(f"--output={output}: must end in {' or '.join(SUFFIXES)}")
    select(args.layers, config.model.layers)
    tokenizer = load_tokenizer(Path(args.workdir) / "tokenizer", config.tokenizer)
    model = config.model
    mesh = local_mesh(config)
    bert = Bert(model)

    def init(rng: jax.Array) -> dict:
        zero = jax.numpy.zeros((1, 2), jax.numpy.int32)
        batch = dict.fromkeys(("token", "segment", "position", "example"), zero)
        return dict(bert.init(rng, batch, method="encode")["params"])

    step, params = parameters(args.workdir, init, mesh)
    params = {name: params[name] for name in of_encoder(model)}
    summary = extract(
        Encoder(
            model, params, tokenizer, mesh, _identity(args.workdir, step, model.dtype)
        ),
        Job(args.layers, args.pool, length, args.batch_tokens),
        source,
        output,
        lambda text: print(f"extract: {text}", file=sys.stderr, flush=True),
        config.data.encoding,
    )
    if args.json:
        print(json.dumps({"output": args.output, "step": step, **summary}))
        return 0
    bad = summary["bad_utf8_lines"]
    print(
        f"{output}: {summary['lines']:,} lines, {summary['tokens']:,} tokens, "
        f"{summary['features']} features, {summary['seconds']:.0f} s "
        f"({summary['tokens_per_second'] / 1000:.1f}k tokens/s); "
        f"{summary['cut']:,} lines were cut to {length} tokens"
        + (f", {bad:,} held bytes that are not UTF-8" if bad else "")
    )
    return 0


def _identity(workdir: str, step: int, dtype: str) -> str:
    config = (Path(workdir) / "config.json").read_bytes()
    return f"{hashlib.sha256(config).hexdigest()} {step} {dtype}"
