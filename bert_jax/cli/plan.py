"""`bert-jax plan`: what a run needs and how fast it can be, before it is paid for."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from bert_jax.cli.arguments import parse
from bert_jax.config import Config, Mesh
from bert_jax.errors import UserError

EXAMPLE = (
    "bert-jax plan --config=configs/bert_large.py --batch=auto \\\n"
    "    --topology=v5e:4x4,v5p:4x4x4,h100:8 --mesh=data=-1 --mesh=fsdp=4"
)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology",
        metavar="NAME[,NAME...]",
        action="append",
        default=[],
        help="v5e:4x4, v5p:4x4x4, v6e:16x16, h100:8, h200:8, a100:8 and so on; "
        "default: the devices of this machine",
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N[,AXIS=N]",
        action="append",
        default=[],
        help="of data, fsdp and model, in place of config.mesh; data takes what the "
        "others leave. Several give a line each",
    )
    parser.add_argument(
        "--phase", type=int, metavar="I", help="index into config.phases; default: last"
    )
    parser.add_argument(
        "--batch",
        metavar="auto|N",
        help="rows a chip works on at a time, in place of the config's batch; auto "
        "finds the largest power of two that fits, or half of it if faster",
    )


def main(argv: Sequence[str]) -> int:
    """Compiles the training step for some machines and prints what it would cost."""
    about = "Compile the training step, also for machines that are not here."
    args = parse(argv, about, EXAMPLE, _options)
    config, phase = args.config, args.phase
    phase = len(config.phases) - 1 if phase is None else phase
    if not 0 <= phase < len(config.phases):
        raise UserError(f"--phase={phase}: the config has {len(config.phases)}")
    if args.batch not in (None, "auto") and not _is_count(args.batch):
        raise UserError(f"--batch={args.batch}: auto, or a number of rows")
    meshes = [_mesh(text) for text in args.mesh] or [config.mesh]
    names = [name for text in args.topology for name in text.split(",")]
    # A compiler does not look at Python's signals, and nothing here is left half done.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        results = list(_plans(config, phase, names, meshes, args.batch))
    finally:
        signal.signal(signal.SIGINT, before)
    if args.json:
        print(json.dumps(results[0] if len(results) == 1 else {"plans": results}))
        return 0
    if len(results) == 1:
        print(_page(results[0], config))
    else:
        print(_table(results, config))
    return 0


def _plans(
    config: Config, phase: int, names: list[str], meshes: list[Mesh], batch: str | None
) -> Iterator[dict[str, Any]]:
    """One result for each topology and mesh."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # XLA's notes on how it saves memory
    if names:
        # The devices here are not needed, and may be busy.
        os.environ["JAX_PLATFORMS"] = "cpu"
    import dataclasses

    from bert_jax import plan, topology
    from bert_jax.distributed import use_all_cores

    if not names:
        use_all_cores()
    if config.sized_elsewhere:
        from bert_jax.resolve import with_weights

        config = with_weights(config)
    places = [topology.named(name) for name in names] or [topology.local()]
    for place in places:
        for mesh in meshes:
            edited = dataclasses.replace(config, mesh=mesh)
            if batch == "auto":
                found = plan.best_batch(edited, phase, place, _note)
            else:
                rows = int(batch) if batch else None
                found = plan.attempt(edited, phase, place, _note, rows)
            result = plan.report(found, config)
            if not found.fits:
                helped = plan.remedy(found, _note)
                result["remedy"] = helped and {
                    "set": helped[0],
                    "plan": plan.report(helped[1], config),
                }
            yield result


def _note(text: str) -> None:
    print(f"plan: {text}", file=sys.stderr, flush=True)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0


def _mesh(text: str) -> Mesh:
    sizes = dict.fromkeys(("data", "fsdp", "model"), 1) | {"data": -1}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sizes or not (_is_count(size) or size == "-1"):
            raise UserError(
                f"--mesh={text}: needs AXIS=N, of data, fsdp and model: fsdp=4,model=2"
            )
        sizes[axis] = int(size)
    if list(sizes.values()).count(-1) > 1:
        raise UserError(f"--mesh={text}: only one axis may be -1; give data=N too")
    return Mesh(**sizes)


def _page(result: dict[str, Any], config: Config) -> str:
    """One plan, for a person."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    lines = [
        f"{result['topology']}: {result['chips']} chips, mesh {mesh}",
        _line("phase", f"{result['phase']}: {result['length']} tokens a row"),
        _line("parameters", f"{result['params']:,}"),
        _line("FLOPs a token", f"{result['flops_per_token'] / 1e9:.3f} G"),
        _line(
            "batch",
            f"{result['batch']:,} rows a step, {result['batch_per_chip']} a chip at a "
            f"time, accumulate {result['accumulate']}, remat {result['remat']}",
        ),
        _line("attention", _attention(result)),
        _line("memory a chip", _memory(result)),
    ]
    for array in result["largest"]:
        size = f"{array['bytes'] / 1e9:6.2f} GB"
        lines.append(_line("", f"{size} {array['shape']} {array['name']}"))
    for kind, total in result["collectives"].items():
        text = f"{total['count']:,} a step, {total['bytes'] / 1e9:.3f} GB"
        if result["seconds"]:
            text += f", {total['seconds'] * 1e3:.1f} ms"
        lines.append(_line(kind, text))
    if result["seconds"]:
        terms = ", ".join(
            f"{name} {seconds * 1e3:.1f} ms"
            for name, seconds in result["seconds"].items()
        )
        lines += [
            _line("roofline", f"{terms}: bound by {result['bound']}"),
            _line("MFU at most", f"{result['mfu_roofline']:.1%}"),
            _line("tokens a second", f"{result['tokens_per_second']:,.0f} at most"),
            _line(
                "the whole run",
                f"{result['days']:.2f} days, {result['chip_hours']:,.0f} chip-hours at "
                f"least for the rows of all {config.steps:,} steps and phases",
            ),
        ]
    if "remedy" in result:
        lines.append(_remedy(result["remedy"]))
        if result["remedy"]:
            lines.append(_page(result["remedy"]["plan"], config))
    return "\n".join(lines)


def _line(name: str, text: str) -> str:
    return f"  {name:18} {text}"


def _attention(result: dict[str, Any]) -> str:
    used, faster = result["attention"], result["attention_without_dropout"]
    if used == faster:
        return used
    return f"{used}; {faster} with --config.model.attention_dropout=0.0"


def _memory(result: dict[str, Any]) -> str:
    limit, used = result["hbm_bytes"], result["hbm_used_bytes"]
    state = f"state and batch {result['state_bytes'] / 1e9:.2f} GB"
    if used is None:
        return f"more than {limit / 1e9:.2f} GB ({state}): does not fit"
    text = f"{used / 1e9:.2f} of {limit / 1e9:.2f} GB ({state})"
    if not result["fits"]:
        text += f": does not fit, by {(used - limit) / 1e9:.2f} GB"
    return text


def _remedy(remedy: dict[str, Any] | None) -> str:
    if remedy is None:
        return "  no smaller micro-batch, remat policy or fsdp axis alone makes it fit"
    flags = " ".join(f"--config.{k}={v}" for k, v in remedy["set"].items())
    return f"  it fits with {flags}:"


def _table(results: list[dict[str, Any]], config: Config) -> str:
    """Several plans, a line each."""
    heads = (
        "topology mesh rows/chip accumulate memory(GB) step(ms) bound MFU "
        "tokens/s days chip-hours"
    ).split()
    rows = [heads]
    for result in results:
        mesh = "x".join(str(size) for size in result["mesh"].values())
        used = result["hbm_used_bytes"]
        memory = f"{used / 1e9:.1f}" if used else "more"
        row = [
            result["topology"],
            mesh,
            f"{result['batch_per_chip']:,}",
            f"{result['accumulate']}",
            f"{memory} of {result['hbm_bytes'] / 1e9:.1f}",
        ]
        if result["seconds"]:
            row += [
                f"{result['step_seconds_roofline'] * 1e3:.1f}",
                result["bound"],
                f"{result['mfu_roofline']:.1%}",
                f"{result['tokens_per_second']:,.0f}",
                f"{result['days']:.2f}",
                f"{result['chip_hours']:,.0f}",
            ]
        else:
            row += ["-"] * (len(heads) - len(row))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
        for row in rows
    ]
    for result in results:
        if not result["fits"]:
            lines.append(f"{result['topology']}: {_memory(result)}")
            lines.append(_remedy(result["remedy"]))
    lines.append(
        "Memory of a chip; mesh data x fsdp x model; days and chip-hours at least, "
        f"for the rows of all {config.steps:,} steps and phases."
    )
    return "\n".join(lines)
