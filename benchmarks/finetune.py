"""`bert-jax train` on labelled texts beside transformers and PyTorch, on the CPU.

Command: python benchmarks/finetune.py --config=configs/glue.py:stsb \
    --config.init=RUN_OR_HUGGING_FACE_DIR --config.task.train_file=FILE \
    --config.task.dev_file=FILE --config.model.dtype=float32 [--seeds=3] [--check]
Needs PyTorch and transformers; names or scores texts or pairs of them. Both sides have
the same initial weights, examples in each step, settings and numerics. Each seed is a
pair of whole runs, one after the other, each a process of its own. Of the dev scores
the last epoch's count, of the speeds those of the second half of the steps.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch_side

EXAMPLE = "benchmarks/finetune.py --config=configs/glue.py:stsb --config.init=runs/base"
SIDES = ("bert_jax", "torch")


class Result(NamedTuple):
    """What a run leaves."""

    losses: list[float]  # of each step
    seconds: list[float]  # of each step
    score: float  # of the dev set, after the last step


def main() -> None:
    """Prints scores, speeds and how they compare as one JSON object."""
    if sys.argv[1:2] == ["--torch"]:
        torch_job(Path(sys.argv[2]))
        return
    from bert_jax.cli.arguments import parse
    from bert_jax.config import presets

    args = parse(sys.argv[1:], str(__doc__).split("\n\n")[0], EXAMPLE, options)
    optim, kind = args.config.optim, args.config.task.kind
    plain = (optim.name, optim.schedule, optim.decay_from, optim.end_rate)
    if plain != ("adamw", "linear", "warmup", 0) or not optim.bias_correction:
        sys.exit("config.optim: here only adamw that decays linearly to 0")
    if kind not in ("classify", "regress"):
        sys.exit(f"config.task.kind={kind}: here only classify and regress")
    edits: dict[str, Any] = {"log_every": 10}
    if args.check:
        still = {"dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}
        edits = {"log_every": 1, "model": still}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            sizes = prepare(folder, presets.replace(args.config, seed=seed, **edits))
            # They take turns at going first, which may be the worse place.
            for side in SIDES[:: -1 if seed % 2 else 1]:
                runs[side].append(measured(side, folder, sizes))
    print(json.dumps(report(runs, args.check)))


def options(parser: argparse.ArgumentParser) -> None:
    """The flags beside those of a config."""
    parser.add_argument("--seeds", type=int, default=3, help="pairs of runs")
    parser.add_argument(
        "--check",
        action="store_true",
        help="without dropout and in float32, where the losses must be the same; "
        "`loss_difference` is the largest relative one of the first 20 steps",
    )


def prepare(folder: Path, config: Any) -> list[int]:
    """Writes what both sides are given; the examples of each step."""
    from bert_jax import config as configs
    from bert_jax import initial
    from bert_jax.interop import huggingface
    from bert_jax.resolve import resolve
    from bert_jax.run import assemble
    from bert_jax.step import init_state

    (folder / "config.json").write_text(configs.to_json(config))
    config, files = resolve(config)
    assert files is not None
    run = assemble(config, "", lambda _: None, files)
    config = run.config
    params = init_state(run.task, run.optimizer, run.mesh, config.seed).params
    if config.init:
        params = initial.weights(config, params, lambda _: None)
    kind, tensors = huggingface.to_tensors(params, config.model, config.task)
    huggingface.save(folder / "model", config, kind, tensors, run.tokenizer, "")
    held_out = run.data.held_out(0)
    assert held_out is not None
    train, dev = run.data.batches(0), held_out.batches
    token, offset = (a.tolist() for a in train.sequences[:3:2])
    plan = {
        "config": json.loads(configs.to_json(config)),
        "train": [item[:2] for item in files.train],  # the text, and its pair or None
        "dev": [item[:2] for item in files.dev],
        "labels": train.labels.tolist(),
        "dev_labels": dev.labels.tolist(),
        "tokens": [token[a:b] for a, b in zip(offset, offset[1:], strict=False)],
        "batches": [train.examples(i).tolist() for i in range(config.steps)],
        "epoch": len(train),
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    return [len(batch) for batch in plan["batches"]]


def measured(side: str, folder: Path, sizes: list[int]) -> dict[str, Any]:
    """Runs one side; its figures."""
    began = time.monotonic()
    result = {"bert_jax": ours, "torch": theirs}[side](folder)
    half = len(sizes) // 2
    figures = {
        "score": result.score,
        "examples_per_second": sum(sizes[half:]) / sum(result.seconds[half:]),
        "run_seconds": time.monotonic() - began,
    }
    told = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
    print(f"{side:8}  {told}", file=sys.stderr)
    return {**figures, "losses": result.losses}


def ours(folder: Path) -> Result:
    """A run of `bert-jax train`."""
    from bert_jax.log import read_metrics

    workdir = folder / "run"
    flags = [f"--config={folder / 'config.json'}", f"--workdir={workdir}"]
    command("-m", "bert_jax", "train", *flags)
    lines = read_metrics(workdir)
    losses, seconds = [], []
    for line in lines:
        if line["kind"] == "train":
            count = line["step"] - len(losses)
            losses += [line["loss"]] * count
            seconds += [1 / line["steps_per_second"]] * count
    return Result(losses, seconds, lines[-1]["eval_score"])


def theirs(folder: Path) -> Result:
    """The same run in PyTorch."""
    import numpy as np

    from bert_jax.labelled import measure

    command(__file__, "--torch", str(folder))
    plan = json.loads((folder / "plan.json").read_text())
    found = json.loads((folder / "torch.json").read_text())
    logits, labels = np.array(found["logits"]), np.array(plan["dev_labels"])
    score = measure(plan["config"]["task"]["score"], logits, labels)
    return Result(found["losses"], found["seconds"], score)


def command(*arguments: str) -> None:
    """Runs Python; where that fails, so do we, with what it said."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stderr}")


def report(runs: dict[str, list[dict[str, Any]]], check: bool) -> dict[str, Any]:
    """Medians, and the medians of the ratios of each pair."""
    figures: dict[str, Any] = {}
    scores = {side: [run["score"] for run in runs[side]] for side in SIDES}
    for side in SIDES:
        figures[f"{side}_scores"] = scores[side]
        for name in ("examples_per_second", "run_seconds"):
            values = [run[name] for run in runs[side]]
            figures[f"{side}_{name}"] = statistics.median(values)
    pairs = list(zip(*(runs[side] for side in SIDES), strict=True))
    for name in ("examples_per_second", "run_seconds"):
        ratios = [a[name] / b[name] for a, b in pairs]
        figures[f"{name}_ratio"] = statistics.median(ratios)
    means = [statistics.mean(scores[side]) for side in SIDES]
    if len(pairs) > 1:
        spreads = [statistics.stdev(scores[side]) for side in SIDES]
        spread = math.hypot(*spreads) / math.sqrt(2)
        figures["score_deviations"] = dict(zip(SIDES, spreads, strict=True))
        figures["difference_in_deviations"] = (means[0] - means[1]) / spread
    if check:
        losses = [list(zip(a["losses"], b["losses"], strict=True)) for a, b in pairs]
        differences = [abs(a / b - 1) for one in losses for a, b in one[:20]]
        figures["loss_difference"] = max(differences)
    return figures


def torch_job(folder: Path) -> None:
    """Trains as `plan.json` says; leaves losses, seconds and dev logits."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import (
        AutoTokenizer,
        BertForSequenceClassification,
        DataCollatorWithPadding,
        get_linear_schedule_with_warmup,
    )

    plan = json.loads((folder / "plan.json").read_text())
    config, steps = plan["config"], len(plan["batches"])
    optim, phase = config["optim"], config["phases"][0]
    torch_side.use_all_cores()
    torch.manual_seed(config["seed"])
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model")
    model: Any = BertForSequenceClassification.from_pretrained(
        folder / "model", attn_implementation="sdpa"
    )
    collate: Any = DataCollatorWithPadding(tokenizer)

    def encode(texts: list[Any]) -> list[dict[str, Any]]:
        first, second = ([t[i] for t in texts] for i in range(2))
        pairs = None if second[0] is None else second
        given = tokenizer(first, pairs, truncation=True, max_length=phase["length"])
        return [{k: v[i] for k, v in given.items()} for i in range(len(texts))]

    train, dev = encode(plan["train"]), encode(plan["dev"])
    if [item["input_ids"] for item in train] != plan["tokens"]:
        sys.exit(
            "transformers makes other tokens of the training texts; of pairs longer "
            "than config.phases[0].length it may drop others"
        )
    for item, label in zip(train, plan["labels"], strict=True):
        item["label"] = label
    optimizer = torch_side.adamw(model, optim)
    warmup = round(optim["warmup_share"] * steps)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    half = config["model"]["dtype"] == "bfloat16"
    numerics = torch.autocast("cpu", torch.bfloat16, enabled=half)
    losses, seconds, logits = [], [], []
    for number, chosen in enumerate(plan["batches"], 1):
        began = time.perf_counter()
        model.train()
        with numerics:
            loss = model(**collate([train[i] for i in chosen])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            model.parameters(), optim["clip_norm"] or math.inf
        )
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
        if number % plan["epoch"] == 0 or number == steps:
            model.eval()
            logits = []
            for i in range(0, len(dev), phase["batch"]):
                with numerics, torch.inference_mode():
                    found = model(**collate(dev[i : i + phase["batch"]])).logits
                logits += found.float().tolist()
    told = {"losses": losses, "seconds": seconds, "logits": logits}
    (folder / "torch.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
