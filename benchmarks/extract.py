"""`bert-jax extract` beside the same job in transformers and PyTorch, on the CPU.

Command: python benchmarks/extract.py --input=TEXT [--workdir=RUN] [--megabytes=10]
Needs PyTorch and transformers. Without --workdir a BERT-mini with random weights and
the vocabulary of --vocabulary is used. The runs alternate; each is a process of its
own, timed from reading the text to the written file, without imports and loading.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

SIDES = ("bert_jax", "torch", "torch_sorted")


def main() -> None:
    """Prints the medians and their ratios as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True, help="text, perhaps compressed")
    parser.add_argument("--workdir", help="a run directory")
    parser.add_argument("--vocabulary", help="a vocab.txt for the random BERT-mini")
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=SIDES[1:], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(torch_job(args.workdir, Path(args.input), args.side)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        cut(args.input, text, args.megabytes)
        model = folder / "model"
        workdir = args.workdir or random_mini(folder, args.vocabulary)
        command("export", f"--workdir={workdir}", f"--output={model}")
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for run in range(args.runs):
            for side in SIDES:
                result = one(side, workdir, model, text, folder / f"{run}{side}.npz")
                times[side].append(result["tokens"] / result["seconds"])
                print(side, f"{times[side][-1]:,.0f} tokens/s", file=sys.stderr)
    ours = times["bert_jax"]
    report: dict[str, Any] = {
        f"{side}_tokens_per_second": statistics.median(times[side]) for side in SIDES
    }
    for side in SIDES[1:]:
        ratios = [a / b for a, b in zip(ours, times[side], strict=True)]
        report[f"ratio_to_{side}"] = statistics.median(ratios)
    print(json.dumps(report))


def cut(source: str, target: Path, megabytes: float) -> None:
    """The first lines of a text, without the empty ones."""
    from collections import Counter

    from bert_jax.data.lines import read

    room = megabytes * 1e6
    with target.open("w", encoding="utf-8") as file:
        for line in filter(str.strip, read(Path(source), "utf-8", Counter())):
            file.write(line + "\n")
            room -= len(line.encode()) + 1
            if room <= 0:
                return


def random_mini(folder: Path, vocabulary: str | None) -> Path:
    """A run of BERT-mini that was never trained."""
    import shutil

    from transformers import BertConfig, BertForPreTraining

    if vocabulary is None:
        sys.exit("give --workdir=RUN, or --vocabulary=vocab.txt")
    source = folder / "source"
    size = len(Path(vocabulary).read_text(encoding="utf-8").splitlines())
    settings = BertConfig(
        vocab_size=size,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
    )
    BertForPreTraining(settings).save_pretrained(source)
    shutil.copy(vocabulary, source / "vocab.txt")
    command("import", f"--source={source}", f"--workdir={folder / 'run'}")
    return folder / "run"


def command(*arguments: str) -> str:
    """Runs one of our commands; its stdout."""
    line = [sys.executable, "-m", "bert_jax", *arguments]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout


def one(side: str, workdir: Any, model: Path, text: Path, output: Path) -> Any:
    """One run of one side; its seconds and tokens."""
    if side == "bert_jax":
        flags = [f"--workdir={workdir}", f"--input={text}", f"--output={output}"]
        told = command("extract", *flags, "--json")
    else:
        flags = [f"--side={side}", f"--workdir={model}", f"--input={text}"]
        line = [sys.executable, __file__, *flags]
        told = subprocess.run(
            line, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    return json.loads(told.splitlines()[-1])


def torch_job(model_path: str, text: Path, side: str) -> dict[str, float]:
    """Mean-pooled features of every line, in batches padded to their longest line."""
    import numpy as np
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer, BertModel

    torch.set_num_threads(os.cpu_count() or 1)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
    model: Any = BertModel.from_pretrained(model_path)
    model.eval()
    began = time.monotonic()
    lines = text.read_text(encoding="utf-8").splitlines()
    order = list(range(len(lines)))
    if side == "torch_sorted":
        order.sort(key=lambda i: -len(lines[i]))
    features = np.empty((len(lines), model.config.hidden_size), np.float32)
    tokens, numbers = 0, iter(order)
    with torch.inference_mode():
        while batch := list(islice(numbers, 32)):
            given = tokenizer(
                [lines[i] for i in batch],
                padding=True,
                truncation=True,
                return_tensors="pt",
            )
            hidden = model(**given).last_hidden_state
            weight = given["attention_mask"][:, :, None]
            pooled = (hidden * weight).sum(1) / weight.sum(1)
            features[batch] = pooled.numpy()
            tokens += int(weight.sum())
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, features=features)
    return {"tokens": tokens, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    main()
