"""A pretraining step beside transformers' BertForPreTraining, on the device there is.

Command: python benchmarks/step_vs_torch.py --config=configs/bert_mini.py:cpu \
    --config.data.store=RUN/store [--phase=0] [--rows=real] [--pairs=3] [--seconds=10]
Needs PyTorch and transformers. Both sides train on the same masked examples of a token
store, with MLM, NSP, dropout, clipping and AdamW, from random weights of the same
sizes, in batches that lie on the device.

--rows=full: rows without padding, the same on both sides; no attention mask for theirs.
--rows=real: ours are packed as in training. Theirs are the same examples one a row, in
random order, padded to the longest of a batch, as transformers' collator does.

transformers works out the MLM logits of every position, ours those of masked ones; both
get the model FLOPs of useful tokens by our formula. Each setting of PyTorch is tried
once; the one of most useful tokens a second is measured beside ours, in pairs. Each
measurement is a process of its own, whole passes over all batches after a warm-up.
Prints a table on stderr and one JSON object on stdout.
"""

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch_side
from numpy.typing import NDArray

EXAMPLE = "benchmarks/step_vs_torch.py --config=configs/bert_mini.py:cpu"
SETTINGS = tuple(
    f"{mode}:{dtype}"
    for mode in ("eager", "compile")
    for dtype in ("float32", "bfloat16")
)
UNLABELLED = -100  # a position that transformers' loss leaves out

Arrays = dict[str, NDArray]


def main() -> None:
    """Prints the speeds of both sides and their ratio."""
    # What `bert-jax` sets for itself, and one GPU: here for both sides.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if sys.argv[1:2] == ["--job"]:
        folder, setting, seconds = Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])
        told = theirs(folder, setting, seconds) if setting else ours(folder, seconds)
        print(json.dumps(told))
        return
    from bert_jax.cli.arguments import parse
    from bert_jax.errors import UserError

    try:
        args = parse(sys.argv[1:], str(__doc__).split("\n\n")[0], EXAMPLE, options)
        with tempfile.TemporaryDirectory() as name:
            sizes = prepare(Path(name), args)
            result = compare(Path(name), args, sizes["model_flops_per_token"])
    except UserError as error:
        print(f"step_vs_torch: error: {error}", file=sys.stderr)
        sys.exit(error.status)
    print(json.dumps({**sizes, **result}))


def options(parser: argparse.ArgumentParser) -> None:
    """The flags beside those of a config."""
    parser.add_argument("--phase", type=int, default=0, help="index into config.phases")
    parser.add_argument("--rows", choices=("full", "real"), default="full")
    parser.add_argument("--pairs", type=int, default=3, help="of measurements")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of a measurement, at least"
    )
    parser.add_argument(
        "--batches", type=int, default=8, help="of ours, that a pass goes over"
    )
    parser.add_argument(
        "--settings",
        default=",".join(SETTINGS),
        help="of PyTorch to try, MODE:DTYPE[:ROWS], separated by commas; ROWS is the "
        "batch, by default the config's (default: %(default)s)",
    )


def prepare(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Writes what both sides are given; what is known of it."""
    from bert_jax import config as configs
    from bert_jax.config.presets import replace
    from bert_jax.data.masking import max_masked
    from bert_jax.data.pipeline import Batches
    from bert_jax.data.store import open_store
    from bert_jax.errors import UserError
    from bert_jax.metrics import train_flops

    config, path = args.config, args.config.data.store
    if args.workdir and not path:
        path = str(Path(args.workdir) / "store")
    if not path:
        raise UserError("needs a token store: --config.data.store=DIR or --workdir=DIR")
    if not 0 <= args.phase < len(config.phases):
        raise UserError(f"--phase={args.phase}: the config has {len(config.phases)}")
    for flag in ("pairs", "batches"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag}={getattr(args, flag)}: must be above 0")
    kinds = config.task.kind, config.objective.pair, config.optim.name
    if kinds != ("pretrain", "nsp", "adamw") or config.objective.span_boundary:
        raise UserError(
            "compares BERT's recipe alone: set config.task.kind=pretrain, "
            "config.objective.pair=nsp, config.objective.span_boundary=False and "
            "config.optim.name=adamw"
        )
    for setting in args.settings.split(","):
        if not re.fullmatch(rf"({'|'.join(SETTINGS)})(:[1-9]\d*)?", setting):
            known = ", ".join(SETTINGS)
            raise UserError(f"--settings={setting}: one of {known}, perhaps with :ROWS")
    store = open_store(path)
    if store.vocabulary.size > config.model.vocab_size:
        raise UserError(
            f"config.model.vocab_size={config.model.vocab_size}: the store has "
            f"{store.vocabulary.size} tokens"
        )
    made = Batches(store, config, args.phase)
    batches = [made.batch(number) for number in range(args.batches)]
    phase = dataclasses.replace(config.phases[args.phase], share=1.0)
    if args.rows == "full":
        batches = [filled(batch) for batch in batches]
        phase = dataclasses.replace(phase, max_packed=1)
    examples = [one for batch in batches for one in unpacked(batch)]
    order = np.random.default_rng(config.seed).permutation(len(examples))
    config = replace(config, phases=(phase,))
    (folder / "config.json").write_text(configs.to_json(config))
    write(folder / "bert_jax.npz", batches)
    for rows in {parts(setting)[2] for setting in args.settings.split(",")}:
        size, pad = int(rows or phase.batch), store.vocabulary.pad
        count = -(-len(examples) // size)
        numbers = np.array_split(order, count)
        padded = [collate([examples[i] for i in part], pad) for part in numbers]
        write(folder / f"torch{rows}.npz", padded)
    masked = max_masked(config.objective, phase.length)
    flops = train_flops(config.model, phase.length, masked)
    return {
        "rows": args.rows,
        "length": phase.length,
        "batch": phase.batch,
        "batches": args.batches,
        "examples": len(examples),
        "dtype": config.model.dtype,
        "model_flops_per_token": flops / phase.length,
    }


def parts(setting: str) -> tuple[str, str, str]:
    """Mode, dtype, and rows of a batch: '' for as many as the config's."""
    mode, dtype, *rows = setting.split(":")
    return mode, dtype, "".join(rows)


def filled(batch: Arrays) -> Arrays:
    """Packed rows, each taken as one example; padding becomes tokens of its row."""
    token = batch["token"].copy()
    for row, used in zip(token, batch["example"] > 0, strict=True):
        row[~used] = np.resize(row[used], (~used).sum())
    ones = np.ones_like(token)
    first = {name: batch[name][:, :1] for name in batch if name.startswith("nsp_")}
    place = np.arange(token.shape[1], dtype=np.int32) * ones
    return {**batch, **first, "token": token, "position": place, "example": ones}


def unpacked(batch: Arrays) -> Iterable[Arrays]:
    """Each example of some rows on its own, as transformers has them."""
    label = np.full(batch["token"].shape, UNLABELLED, np.int32)
    row, slot = np.nonzero(batch["mlm_weight"])
    label[row, batch["mlm_position"][row, slot]] = batch["mlm_label"][row, slot]
    for row, slot in zip(*np.nonzero(batch["nsp_weight"]), strict=True):
        inside = batch["example"][row] == slot + 1
        yield {
            "input_ids": batch["token"][row][inside],
            "token_type_ids": batch["segment"][row][inside],
            "attention_mask": np.ones(inside.sum(), np.int32),
            "labels": label[row][inside],
            "next_sentence_label": batch["nsp_label"][row, slot],
        }


def collate(examples: list[Arrays], pad: int) -> Arrays:
    """A row for each example, padded to the longest."""
    length = max(len(example["input_ids"]) for example in examples)
    fill = {"input_ids": pad, "labels": UNLABELLED}
    batch = {}
    for name in examples[0]:
        rows = [example[name] for example in examples]
        if rows[0].ndim:
            value = fill.get(name, 0)
            rows = [
                np.pad(row, (0, length - len(row)), constant_values=value)
                for row in rows
            ]
        batch[name] = np.stack(rows).astype(np.int64)
    return batch


def write(file: Path, batches: Sequence[Arrays]) -> None:
    """Keeps batches for `read`."""
    named = [
        (i, name, a) for i, batch in enumerate(batches) for name, a in batch.items()
    ]
    np.savez(file, **{f"{i}/{name}": array for i, name, array in named})  # pyright: ignore


def read(file: Path) -> list[Arrays]:
    """The batches that `write` kept."""
    batches: dict[str, Arrays] = {}
    with np.load(file) as arrays:
        for key in arrays:
            number, name = key.split("/")
            batches.setdefault(number, {})[name] = arrays[key]
    return list(batches.values())


def compare(folder: Path, args: argparse.Namespace, flops: float) -> dict[str, Any]:
    """Tries the settings, then measures pairs."""
    from bert_jax.errors import UserError

    print(f"{'':24}useful tokens/s  padded tokens/s  model GFLOP/s", file=sys.stderr)
    names = args.settings.split(",")
    tried = {name: run(folder, name, 0.0, flops) for name in names}
    works = [name for name in names if "error" not in tried[name]]
    if not works:
        raise UserError("no setting of PyTorch works: " + tried[names[0]]["error"])
    best = max(works, key=lambda name: tried[name]["useful_tokens_per_second"])
    pairs = []
    for number in range(args.pairs):
        # They take turns at going first, which may be the worse place.
        sides = ["", best][:: -1 if number % 2 else 1]
        found = {side: run(folder, side, args.seconds, flops) for side in sides}
        for one in found.values():
            if "error" in one:
                raise UserError(one["error"])
        pairs.append((found[""], found[best]))
    platforms = [one["platform"] for one in pairs[0]]
    if platforms[0] != platforms[1]:
        raise UserError(
            f"bert_jax ran on {platforms[0]}, PyTorch on {platforms[1]}; install both "
            "for the same device, or hide the accelerator with CUDA_VISIBLE_DEVICES="
        )
    result: dict[str, Any] = {"platform": platforms[0], "best": best, "settings": tried}
    for name, side in zip(("bert_jax", "torch"), zip(*pairs, strict=True), strict=True):
        result[name] = {
            key: statistics.median(one[key] for one in side)
            for key, value in side[0].items()
            if not isinstance(value, str)
        }
    for kind in ("useful", "padded"):
        key = f"{kind}_tokens_per_second"
        ratios = [a[key] / b[key] for a, b in pairs]
        result |= {f"{kind}_ratio": statistics.median(ratios), f"{kind}_ratios": ratios}
    told = ", ".join(f"{ratio:.2f}" for ratio in result["useful_ratios"])
    print(
        f"useful tokens/s of bert_jax over PyTorch's: {result['useful_ratio']:.2f} "
        f"(pairs: {told})\nPyTorch works out MLM logits of all positions, bert_jax "
        "those of masked ones.",
        file=sys.stderr,
    )
    return result


def run(folder: Path, setting: str, seconds: float, flops: float) -> dict[str, Any]:
    """Measures one side in a process of its own: its figures, or its `error`."""
    name = setting or "bert_jax"
    job = [sys.executable, __file__, "--job", str(folder), setting, str(seconds)]
    done = subprocess.run(job, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        cause = lines[-1] if lines else f"status {done.returncode}"
        print(f"{name:24}{cause}", file=sys.stderr)
        return {"error": f"{name}: {cause}"}
    told = json.loads(done.stdout.splitlines()[-1])
    useful, padded = (told[f"{k}_tokens_per_second"] for k in ("useful", "padded"))
    told["model_flops_per_second"] = flops * useful
    print(
        f"{name:24}{useful:15,.0f}{padded:17,.0f}{flops * useful / 1e9:15,.1f}",
        file=sys.stderr,
    )
    return told


def ours(folder: Path, seconds: float) -> dict[str, Any]:
    """bert_jax's training step."""
    import jax

    from bert_jax import config as configs
    from bert_jax import speed
    from bert_jax.distributed import use_all_cores

    use_all_cores()
    began = time.perf_counter()
    config = configs.load(str(folder / "config.json"))
    batches = read(folder / "bert_jax.npz")
    ready = speed.compile_step(config, 0)
    placed, state = [ready.place(batch) for batch in batches], ready.start()

    def step(batch: Any) -> Any:
        nonlocal state
        state, told = ready.step(state, batch)
        return told["loss"]

    times = timed(
        step,
        placed,
        (3 * placed)[:3],
        lambda: jax.block_until_ready(state),
        seconds,
        began,
    )
    padded = sum(batch["example"].size for batch in batches)
    useful = sum(int(np.count_nonzero(batch["example"])) for batch in batches)
    return {
        **figures(useful, padded, times),
        "platform": jax.devices()[0].platform,
    }


def theirs(folder: Path, setting: str, seconds: float) -> dict[str, Any]:
    """The same in PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import BertConfig, BertForPreTraining

    from bert_jax import config as configs

    torch_side.use_all_cores()
    config = configs.load(str(folder / "config.json"))
    settings = json.loads(configs.to_json(config))
    mode, dtype, rows = parts(setting)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    if device == "cuda":  # TF32, as JAX does by itself
        torch.set_float32_matmul_precision("high")
    began = time.perf_counter()
    model: Any = BertForPreTraining(bert_config(BertConfig, config.model))
    model.to(device).train()
    optimizer = torch_side.adamw(model, settings["optim"])
    called: Any = torch.compile(model) if mode == "compile" else model
    kept = read(folder / f"torch{rows}.npz")
    useful = sum(int(batch["attention_mask"].sum()) for batch in kept)
    padded = sum(batch["input_ids"].size for batch in kept)
    if useful == padded:
        for batch in kept:
            del batch["attention_mask"]
    batches = [
        {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
        for batch in kept
    ]
    half, clip = dtype == "bfloat16", config.optim.clip_norm

    def step(batch: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = called(**batch).loss
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    # torch.compile compiles for some new shapes, so each is seen once.
    shapes = {batch["input_ids"].shape: batch for batch in batches}
    count = len(shapes) if mode == "compile" else 3
    warm = (3 * list(shapes.values()))[: max(count, 3)]
    times = timed(step, batches, warm, finish, seconds, began)
    return {
        **figures(useful, padded, times),
        "platform": "gpu" if device == "cuda" else device,
    }


def bert_config(make: Any, model: Any) -> Any:
    """The sizes of a config in transformers' words."""
    return make(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=model.mlp,
        hidden_act={"gelu_tanh": "gelu_pytorch_tanh"}.get(model.activation, "gelu"),
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.attention_dropout,
        max_position_embeddings=model.positions,
        type_vocab_size=model.segments,
        layer_norm_eps=model.norm_epsilon,
        initializer_range=model.init_std,
        attn_implementation="sdpa",
    )


def timed(
    step: Callable[[Any], Any],
    batches: Sequence[Any],
    warm: Sequence[Any],
    finish: Callable[[], Any],
    seconds: float,
    since: float,
) -> dict[str, Any]:
    """First loss, seconds from `since` to the end of the warm-up, and of each pass."""
    losses = [step(batch) for batch in warm]
    finish()
    start, passes = time.perf_counter() - since, []
    while not passes or sum(passes) < seconds:
        began = time.perf_counter()
        for batch in batches:
            step(batch)
        finish()
        passes.append(time.perf_counter() - began)
    return {"loss": float(losses[0]), "start": start, "passes": passes}


def figures(useful: int, padded: int, times: dict[str, Any]) -> dict[str, Any]:
    """What a side reports, by the median of its passes."""
    median = statistics.median(times["passes"])
    return {
        "useful_tokens": useful,
        "padded_tokens": padded,
        "useful_tokens_per_second": useful / median,
        "padded_tokens_per_second": padded / median,
        "first_loss": times["loss"],
        "start_seconds": times["start"],
        "passes": len(times["passes"]),
    }


if __name__ == "__main__":
    main()
