"""`bert-jax bench data`, `step` and `sweep`: how fast the parts of a run are."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.cli.arguments import parse
from bert_jax.config import Config
from bert_jax.config.validate import problems
from bert_jax.errors import UserError

EXAMPLE = (
    "bert-jax bench sweep --config=configs/bert_base.py --workdir=runs/base \\\n"
    "    --batches=8,16,32 --lengths=128,512"
)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("data", "step", "sweep"),
        help="the input pipeline, the training step, or the step at several sizes",
    )
    parser.add_argument("--phase", type=int, default=0, help="index into config.phases")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="to measure for, each of a sweep"
    )
    parser.add_argument(
        "--profile", metavar="DIR", help="step: a trace of some steps, for TensorBoard"
    )
    parser.add_argument(
        "--batches",
        metavar="N,N,...",
        help="sweep: rows of a step (default: 8,16,32,64)",
    )
    parser.add_argument(
        "--lengths", metavar="N,N,...", help="sweep: tokens of a row (default: config)"
    )


def main(argv: Sequence[str]) -> int:
    """Measures and prints a table, or JSON."""
    args = parse(
        argv,
        "Measure the input pipeline or the training step.",
        EXAMPLE,
        _options,
        remote_workdir=False,
    )
    config, phase = args.config, args.phase
    if config.sized_elsewhere:
        from bert_jax.resolve import with_weights

        config = with_weights(config)
    if not 0 <= phase < len(config.phases):
        raise UserError(f"--phase={phase}: the config has {len(config.phases)}")
    for flag, what in (("profile", "step"), ("batches", "sweep"), ("lengths", "sweep")):
        if getattr(args, flag) is not None and args.what != what:
            raise UserError(f"--{flag}: of `bench {what}` only")
    if args.what != "data" and config.task.kind != "pretrain":
        raise UserError(
            f"config.task.kind={config.task.kind}: bench measures pretraining only"
        )
    store = config.data.store
    if args.workdir and not store:
        store = str(Path(args.workdir) / "store")
    if args.what == "data":
        result = _data(config, store, phase, args.seconds)
    elif args.what == "step":
        result = _step(config, store, phase, args.seconds, args.profile)
    else:
        batches = _numbers("batches", args.batches or "8,16,32,64")
        lengths = _numbers("lengths", args.lengths or str(config.phases[phase].length))
        result = _sweep(config, store, phase, args.seconds, batches, lengths)
    if args.json:
        print(json.dumps(result))
    elif args.what == "sweep":
        print(_table(result))
    else:
        for name, value in result.items():
            print(
                f"{name:28} {value:,.4g}" if value is not None else f"{name:28} unknown"
            )
    return 0


def _numbers(flag: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise UserError(
            f"--{flag}={text}: needs whole numbers above 0, such as --{flag}=128,256"
        )
    return sorted({int(part) for part in parts})


def _data(config: Config, store: str, phase: int, seconds: float) -> dict[str, Any]:
    """Batches through the iterator that training uses, no device involved."""
    from bert_jax.data.pipeline import Batches, iterate
    from bert_jax.data.store import open_store

    if not store:
        raise UserError(
            "bench data needs a token store: --workdir=DIR or config.data.store"
        )
    began = time.perf_counter()
    batches = Batches(open_store(store), config, phase)
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
        "epoch_rows": batches.plan.epoch_rows,
        **batches.plan.coverage,
    }


def _step(
    config: Config, store: str, phase: int, seconds: float, profile: str | None
) -> dict[str, Any]:
    """The compiled training step on one batch that stays on the devices."""
    from bert_jax import speed
    from bert_jax.distributed import use_all_cores

    if profile:
        try:
            Path(profile).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--profile={profile}: {error.strerror}") from error
    use_all_cores()
    batch = _batch(config, store, phase)
    ready = speed.compile_step(config, phase)
    times = speed.measure(ready, batch, seconds, profile)
    result = speed.report(ready, batch, times)
    matmul = speed.matmul_flops(config.model)
    return result | {
        "matmul_flops_per_second": matmul,
        "matmul_share": result["model_flops_per_second"] / matmul,
    }


def _sweep(
    config: Config,
    store: str,
    phase: int,
    seconds: float,
    batches: list[int],
    lengths: list[int],
) -> dict[str, Any]:
    """The step at every size, and the flags of the fastest of each length and of all.

    The fastest makes most useful tokens a second.
    """
    from bert_jax import plan, sharding, speed
    from bert_jax.distributed import use_all_cores

    use_all_cores()
    cells = [
        plan.with_phase(config, phase, length=length, batch=batch)
        for length in lengths
        for batch in batches
    ]
    if faults := [fault for cell in cells for fault in problems(cell)]:
        raise UserError("\n".join(dict.fromkeys(faults)))
    mesh = sharding.make_mesh(config.mesh)
    for cell in cells:
        sharding.check_batch(mesh, cell.phases[phase], phase)
    rows = []
    for cell in cells:
        shape = cell.phases[phase]
        row = {"length": shape.length, "batch": shape.batch}
        print(f"bench: {shape.batch} rows of {shape.length} tokens", file=sys.stderr)
        found = speed.attempt(cell, phase, lambda c: _batch(c, store, phase), seconds)
        rows.append(row | found)

    def flags(rows: list[dict[str, Any]]) -> str | None:
        """Of the fastest row."""
        fitting = [row for row in rows if row["fits"]]
        if not fitting:
            return None
        best = max(fitting, key=lambda row: row["useful_tokens_per_second"])
        edits = {f"phases[{phase}].{name}": best[name] for name in ("length", "batch")}
        return " ".join(f"'--config.{name}={value}'" for name, value in edits.items())

    by_length = {n: flags([row for row in rows if row["length"] == n]) for n in lengths}
    return {"rows": rows, "best": flags(rows), "best_of_length": by_length}


def _table(result: dict[str, Any]) -> str:
    """A sweep, for a person."""
    heads = "length batch step(ms) useful/s padded/s GFLOP/s MFU memory(GB)".split()
    lines: list[list[str]] = [list(heads)]
    for row in result["rows"]:
        used = row["peak_memory_bytes"]
        line = ["-"] * 5
        if row["fits"]:
            line = [
                f"{row['seconds_median'] * 1e3:,.1f}",
                f"{row['useful_tokens_per_second']:,.0f}",
                f"{row['padded_tokens_per_second']:,.0f}",
                f"{row['model_flops_per_second'] / 1e9:,.1f}",
                f"{row['mfu']:.1%}" if row["mfu"] is not None else "-",
            ]
        memory = f"{used / 1e9:.3g}" if used else ""
        memory += "" if row["fits"] else " does not fit"
        lines.append([f"{row['length']:,}", f"{row['batch']:,}", *line, memory.strip()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True))
        for line in lines
    ]
    text.append("Tokens a second of all devices; memory of each.")
    if len(result["best_of_length"]) > 1:
        for length, flags in result["best_of_length"].items():
            text.append(f"fastest of {length} tokens: {flags or 'none fits'}")
    text.append(f"fastest: {result['best'] or 'none fits; try smaller --batches'}")
    return "\n".join(text)


def _batch(config: Config, store: str, phase: int) -> dict[str, np.ndarray]:
    """A real batch where there is a store, else full rows of random tokens."""
    from bert_jax.data.masking import max_masked
    from bert_jax.data.pipeline import Batches
    from bert_jax.data.store import open_store

    if store and Path(store).is_dir():
        return Batches(open_store(store), config, phase).batch(0)
    shape, rng = config.phases[phase], np.random.default_rng(config.seed)
    size, masked = (
        (shape.batch, shape.length),
        max_masked(config.objective, shape.length),
    )
    ones = np.ones(size, np.int32)
    place = np.argsort(rng.random(size), axis=1)[:, :masked].astype(np.int32)
    if config.objective.kind == "ltr":
        place = np.sort(place, axis=1)
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
    if config.objective.span_boundary:
        last, offset = shape.length - 1, np.zeros_like(place)
        left, right = np.maximum(place - 1, 0), np.minimum(place + 1, last)
        batch |= {"sbo_left": left, "sbo_right": right, "sbo_offset": offset}
    if config.objective.pair != "none":
        label = rng.integers(2, size=pairs, dtype=np.int32)
        zero = np.zeros(pairs, np.int32)
        batch |= {"nsp_position": zero, "nsp_label": label, "nsp_weight": first}
    return batch
