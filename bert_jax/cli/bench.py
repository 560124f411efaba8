"""`bert-jax bench data` and `bench step`: how fast the parts of a run are."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.cli.arguments import parse
from bert_jax.config import Config
from bert_jax.errors import UserError

EXAMPLE = "bert-jax bench data --config=configs/bert_base.py --workdir=runs/base"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("data", "step"), help="what to measure")
    parser.add_argument("--phase", type=int, default=0, help="index into config.phases")
    parser.add_argument("--seconds", type=float, default=10.0, help="to measure for")


def main(argv: Sequence[str]) -> int:
    """Measures one part and prints a table, or JSON."""
    args = parse(
        argv,
        "Measure the input pipeline or the training step.",
        EXAMPLE,
        _options,
        remote_workdir=False,
    )
    if not 0 <= args.phase < len(args.config.phases):
        raise UserError(
            f"--phase={args.phase}: the config has {len(args.config.phases)}"
        )
    measure = {"data": _data, "step": _step}[args.what]
    result = measure(args.config, args.workdir, args.phase, args.seconds)
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(
                f"{name:28} {value:,.4g}" if value is not None else f"{name:28} unknown"
            )
    return 0


def _data(
    config: Config, workdir: str | None, phase: int, seconds: float
) -> dict[str, Any]:
    """Batches through the iterator that training uses, no device involved."""
    from bert_jax.data.pipeline import Batches, iterate
    from bert_jax.data.store import open_store

    directory = config.data.store or (str(Path(workdir) / "store") if workdir else "")
    if not directory:
        raise UserError(
            "bench data needs a token store: --workdir=DIR or config.data.store"
        )
    began = time.perf_counter()
    batches = Batches(open_store(directory), config, phase)
    batches.batch(0)
    opened = time.perf_counter() - began
    stream = iterate(batches.batch, 0, 1 << 40)
    for _ in range(8):  # past the batches that were made ahead
        next(stream)
    real = padded = alone = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        example = next(stream)["example"]
        real, padded = real + np.count_nonzero(example), padded + example.size
        alone += int(example.max(axis=1).sum()) * example.shape[1]
    elapsed = time.perf_counter() - began
    return {
        "real_tokens_per_second": real / elapsed,
        "padded_tokens_per_second": padded / elapsed,
        "fill": real / padded,
        "fill_unpacked": real / alone,  # with a row for each example
        "open_seconds": opened,
    }


def _step(
    config: Config, workdir: str | None, phase: int, seconds: float
) -> dict[str, Any]:
    """The compiled training step on one batch that stays on the devices."""
    from bert_jax import speed
    from bert_jax.distributed import use_all_cores

    use_all_cores()
    batch = _batch(config, workdir, phase)
    ready = speed.compile_step(config, phase)
    result = speed.report(ready, batch, speed.measure(ready, batch, seconds))
    matmul = speed.matmul_flops(config.model.dtype)
    return result | {
        "matmul_flops_per_second": matmul,
        "matmul_share": result["model_flops_per_second"] / matmul,
    }


def _batch(config: Config, workdir: str | None, phase: int) -> dict[str, np.ndarray]:
    """A real batch where there is a store, else full rows of random tokens."""
    from bert_jax.data.masking import max_masked
    from bert_jax.data.pipeline import Batches
    from bert_jax.data.store import open_store

    directory = config.data.store or (str(Path(workdir) / "store") if workdir else "")
    if directory and Path(directory).is_dir():
        return Batches(open_store(directory), config, phase).batch(0)
    shape, rng = config.phases[phase], np.random.default_rng(config.seed)
    size, masked = (
        (shape.batch, shape.length),
        max_masked(config.objective, shape.length),
    )
    ones = np.ones(size, np.int32)
    place = np.argsort(rng.random(size), axis=1)[:, :masked].astype(np.int32)
    pairs = (shape.batch, shape.max_packed)
    first = np.zeros(pairs, np.float32)
    first[:, 0] = 1
    vocab = config.model.vocab_size
    batch = {
        "token": rng.integers(vocab, size=size, dtype=np.int32),
        "segment": (np.arange(shape.length) >= shape.length // 2) * ones,
        "position": np.arange(shape.length, dtype=np.int32) * ones,
        "example": ones,
        "mlm_position": place,
        "mlm_label": rng.integers(vocab, size=place.shape, dtype=np.int32),
        "mlm_weight": np.ones(place.shape, np.float32),
    }
    if config.objective.pair == "nsp":
        label = rng.integers(2, size=pairs, dtype=np.int32)
        zero = np.zeros(pairs, np.int32)
        batch |= {"nsp_position": zero, "nsp_label": label, "nsp_weight": first}
    return batch
