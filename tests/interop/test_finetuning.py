"""The fine-tuning benchmark: without dropout, the same losses as transformers' BERT."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import random_run
from tests.interop import hugging

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_step_is_that_of_pytorch(tmp_path):
    hugging.torch()
    random_run.write(tmp_path)
    rng = np.random.default_rng(0)
    for name, count in (("train", 100), ("dev", 40)):
        rows = []
        for _ in range(count):
            texts = [rng.integers(1, 60, rng.integers(1, 30)) for _ in range(2)]
            one, two = (" ".join(f"w{i}" for i in numbers) for numbers in texts)
            rows.append(f"{one}\t{two}\t{rng.choice(['no', 'perhaps', 'yes'])}")
        text = "\n".join(["text\tpair\tlabel", *rows]) + "\n"
        (tmp_path / f"{name}.tsv").write_text(text)
    flags = [f"--config.task.{n}_file={tmp_path / n}.tsv" for n in ("train", "dev")]
    flags += ["--config.task.pair_column=pair", "--config.task.epochs=2"]
    flags += ["--config.phases[0].batch=8", "--config.phases[0].length=64"]
    flags += [f"--config.init={tmp_path / 'hf'}", "--config.optim.peak_rate=1e-3"]
    program = [sys.executable, ROOT / "benchmarks/finetune.py", "--check", "--seeds=1"]
    done = subprocess.run(
        [*program, f"--config={ROOT / 'configs/glue.py'}", *flags],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["loss_difference"] < 1e-4
    assert found["bert_jax_scores"] == pytest.approx(found["torch_scores"], abs=0.03)
    assert found["examples_per_second_ratio"] > 0
