"""Attention forward and backward, by each implementation that runs here.

Command: python benchmarks/attention.py [--lengths=512,2048,8192] [--rate=0.1] [--json]

Rows of packed examples of one size, as many rows as --tokens fill, on one device. The
seconds are a call's, their median, beside `xla`'s and a floor: the products in the
formula of attention, twice as many backward as forward and within examples alone, at
the device's data sheet rate, or that of a large product where there is none.
`differs` is how far the result and the three gradients are from `xla`'s, at most, by
the largest number of each. Prints a table, with --json one JSON object.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

import jax
import jax.numpy as jnp

from bert_jax import metrics, plan, speed
from bert_jax.config import Model
from bert_jax.errors import UserError
from bert_jax.model.attention import attend

KINDS = "xla,flash,cudnn,pallas,splash"
TITLE = f"{'':8}{'tokens':>8}{'ms':>10}{'of xla':>8}{'of floor':>10}{'differs':>9}"


def main() -> None:
    """Measures every implementation at every length."""
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = functools.partial(parser.add_argument, type=int)
    parser.add_argument("--kinds", default=KINDS, help="of implementations")
    parser.add_argument("--lengths", default="512,2048,8192", help="tokens of a row")
    number("--tokens", default=8192 if on_cpu else 16_384, help="of all rows")
    number("--heads", default=2 if on_cpu else 16)
    number("--features", default=64, help="of a head")
    number("--examples", default=1, help="packed into a row")
    parser.add_argument("--rate", type=float, default=0.0, help="of dropout")
    parser.add_argument("--dtype", default="float32" if on_cpu else "bfloat16")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a measurement")
    parser.add_argument(
        "--interpreted", action="store_true", help="on a CPU also the GPU's and TPU's"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    peak = metrics.device_peak(device) or speed.matmul_flops(Model(dtype=args.dtype))
    lengths = map(int, args.lengths.split(","))
    rows = [row for length in lengths for row in measured(args, length, peak)]
    if args.json:
        print(json.dumps({**vars(args), "device": device, "peak": peak, "rows": rows}))
        return
    print(f"{device}, {peak / 1e12:.3g} TFLOP/s at most")
    print(TITLE)
    for row in rows:
        print(line(row))


def line(row: dict[str, Any]) -> str:
    """A measurement for a person."""
    start = f"{row['kind']:8}{row['length']:8}"
    if "why" in row:
        return f"{start}  {row['why']}"
    of_xla, differs = row["to_xla"], row["differs"]
    return (
        f"{start}{row['seconds_median'] * 1e3:10.2f}"
        f"{'-' if of_xla is None else format(of_xla, '.2f'):>8}{row['to_floor']:10.1f}"
        f"{'-' if differs is None else format(differs, '.0e'):>9}"
    )


def measured(args: argparse.Namespace, length: int, peak: float) -> list[dict]:
    """The figures of each implementation at a length, or `why` it has none."""
    count = max(args.tokens // length, 1)
    arrays = inputs(args, count, length)
    flops = 12 * count * args.heads * length**2 * args.features / args.examples
    rows, xla = [], None
    # First what the others are compared with.
    for kind in sorted(args.kinds.split(","), key=lambda kind: kind != "xla"):
        row: dict[str, Any] = {"kind": kind, "length": length, "row_count": count}
        try:
            if jax.default_backend() == "cpu" and kind in ("pallas", "splash"):
                if not args.interpreted:
                    raise UserError("would be interpreted on a CPU")
            seconds, found = timed(step(kind, args.rate), arrays, args.seconds)
        except Exception as error:  # whatever compilers say; the others go on
            row["why"] = " ".join(str(error).split())[:200]
        else:
            if kind == "xla":
                xla = seconds, found
            row["seconds_median"] = seconds
            row["to_xla"] = seconds / xla[0] if xla else None
            row["to_floor"] = seconds * peak / flops
            row["differs"] = differ(found, xla[1]) if xla else None
        rows.append(row)
        print(line(row), file=sys.stderr)
    return rows


def inputs(args: argparse.Namespace, count: int, length: int) -> tuple[jax.Array, ...]:
    """Query, key, value, the result's gradient, numbers of examples, random words."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape = count, length, args.heads, args.features
    vectors = [jax.random.normal(key, shape, args.dtype) for key in keys]
    example = 1 + jnp.arange(length, dtype=jnp.int32) * args.examples // length
    words = jnp.array([1, 2], jnp.uint32)
    return *vectors, jnp.tile(example, (count, 1)), words


def step(kind: str, rate: float) -> Callable[..., Any]:
    """The result and the gradients of query, key and value."""

    def both(query, key, value, gradient, example, words):
        def mixed(query, key, value):
            return attend(query, key, value, example, words, rate, kind)

        found, back = jax.vjp(mixed, query, key, value)
        return found, *back(gradient)

    return both


def timed(function: Callable[..., Any], arrays: Any, least: float) -> tuple[float, Any]:
    """Seconds of a call, the median, and its result."""
    compiled = jax.jit(function).lower(*arrays).compile()
    needs, free = plan.used_bytes(compiled), speed.free_memory()
    if needs > free:
        raise UserError(f"needs {needs / 1e9:.1f} GB of {free / 1e9:.1f} GB")
    found = jax.block_until_ready(compiled(*arrays))
    # Several at once, or a GPU waits for Python.
    turns, times = 1 if jax.default_backend() == "cpu" else 10, []
    while len(times) < 3 or sum(times) * turns < least:
        began = time.perf_counter()
        jax.block_until_ready([compiled(*arrays) for _ in range(turns)])
        times.append((time.perf_counter() - began) / turns)
    return statistics.median(times), found


def differ(found: Any, wanted: Any) -> float:
    """The largest difference of some arrays, each by its largest number."""
    pairs = zip(found, wanted, strict=True)
    # Not max(), which may pass NaN over.
    return float(
        jnp.stack([jnp.abs(a - b).max() / jnp.abs(b).max() for a, b in pairs]).max()
    )


if __name__ == "__main__":
    main()
