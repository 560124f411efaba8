"""Time and memory of `bert-jax prepare` on text in many lines and in one line.

Texts of each script are written in each format, once as documents of many lines and
once as a single line, and prepared with a tokenizer of each kind that is trained on
them. The processor time of the two and the largest memory of any process are printed.

Command: python benchmarks/prepare.py [--megabytes=100] [--scripts=english,dna]
    [--formats=txt,jsonl] [--kinds=wordpiece] [--workers=1]
Prints a row of a table for each case; the last column is the time of one line over
that of many lines.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

KINDS = ("wordpiece", "bpe", "byte_bpe", "unigram")
FORMATS = ("txt", "jsonl", "parquet")
_LINE = 80  # words in a line, or characters where there are no words


def english(rng: np.random.Generator) -> Iterator[str]:
    """Lines of the installed packages' documentation, over and over."""
    from bert_jax.data import python_docs

    lines = [line for document in python_docs.documents() for line in document]
    while True:
        yield from (lines[i] + " " for i in rng.permutation(len(lines)))


def emoji(rng: np.random.Generator) -> Iterator[str]:
    """English with one emoji, after which Python holds 4 bytes a character."""
    yield "\U0001f600 "
    yield from english(rng)


def chinese(rng: np.random.Generator) -> Iterator[str]:
    """Lines without a space; the characters' frequencies follow Zipf's law."""
    while True:
        found = np.minimum(rng.zipf(1.3, _LINE), 6000) + 0x4E00
        yield "".join(map(chr, found)) + "。"


def korean(rng: np.random.Generator) -> Iterator[str]:
    """Lines of words of 1 to 5 syllables, with frequencies by Zipf's law."""
    syllables = rng.integers(0xAC00, 0xD7A4, (50_000, 5)).tolist()
    sizes = rng.integers(1, 6, 50_000).tolist()
    words = [
        "".join(map(chr, word[:size]))
        for word, size in zip(syllables, sizes, strict=True)
    ]
    while True:
        found = np.minimum(rng.zipf(1.2, _LINE), len(words)) - 1
        yield " ".join(words[i] for i in found) + ". "


def dna(rng: np.random.Generator) -> Iterator[str]:
    """Lines of a single word of four letters."""
    while True:
        yield rng.choice(np.frombuffer(b"ACGT", "u1"), _LINE).tobytes().decode()


SCRIPTS = {f.__name__: f for f in (english, emoji, chinese, korean, dna)}


def write(script: str, format: str, size: int, one: bool, path: Path) -> None:
    """Write a text of `size` bytes as documents of 20 lines, or as one line."""
    lines, total = [], 0
    for line in SCRIPTS[script](np.random.default_rng(0)):
        lines.append(line)
        total += len(line.encode())
        if total >= size:
            break
    step = len(lines) if one else 20
    texts = [
        ("" if one else "\n").join(lines[start : start + step])
        for start in range(0, len(lines), step)
    ]
    if format == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
        return
    with open(path, "w", encoding="utf-8") as file:
        for text in texts:
            record = json.dumps({"text": text}, ensure_ascii=False)
            file.write(record + "\n" if format == "jsonl" else text + "\n\n")


def measure(path: Path, kind: str, workers: int) -> tuple[float, float]:
    """Return processor seconds of all processes and MB of the largest."""
    with tempfile.TemporaryDirectory(dir=path.parent) as store:
        command = [
            *(sys.executable, "-m", "bert_jax", "prepare", f"--workdir={store}/run"),
            *(f"--num-workers={workers}", f"--config.data.source={path}"),
            *("--config=bert_base", f"--config.tokenizer.kind={kind}"),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        # Its maximum is that of one process: the command or a worker of it.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Measure each case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100, help="MB of each text")
    for name, values in (("scripts", SCRIPTS), ("formats", FORMATS), ("kinds", KINDS)):
        parser.add_argument(f"--{name}", default=",".join(values))
    parser.add_argument("--workers", type=int, default=1, help="worker processes")
    args = parser.parse_args()
    print("| text | tokenizer | many lines: s, MB | one line: s, MB | time |")
    print("|---|---|---|---|---|", flush=True)
    for script in args.scripts.split(","):
        for format in args.formats.split(","):
            with tempfile.TemporaryDirectory() as folder:
                paths = []
                for name in ("many", "one"):
                    paths.append(Path(folder) / f"{name}.{format}")
                    size = args.megabytes * 1_000_000
                    # In a process of its own: memory here would count as the command's.
                    work = script, format, size, name == "one", paths[-1]
                    writer = multiprocessing.get_context("spawn").Process(
                        target=write, args=work
                    )
                    writer.start()
                    writer.join()
                for kind in args.kinds.split(","):
                    cells, times = [], []
                    for path in paths:
                        spent, memory = measure(path, kind, args.workers)
                        times.append(spent)
                        cells.append(f"{spent:.1f}, {memory:,.0f}")
                    ratio = f"{times[1] / times[0]:.2f}"
                    row = f"{script}.{format}", kind, *cells, ratio
                    print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
