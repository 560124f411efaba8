"""Every research variant learns, on one device as on eight, and goes on after a stop.

The table of variants is that of docs/ablations.md.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax import config, optim, sharding, step
from bert_jax.checkpoint import Checkpoints
from bert_jax.data.pipeline import Batches
from bert_jax.data.prepare import prepare_store
from bert_jax.data.store import open_store
from bert_jax.run import task_of
from tests.cli import corpus

CONFIG = str(Path(__file__).parents[1] / "configs/bert_tiny.py:smoke")
STEPS = 300
STOP = 5
VARIANTS = {
    "ltr": "objective.kind=ltr objective.pair=none model.mixer=causal_attention",
    "bilstm": "model.mixer=lstm",
    "no-nsp": "objective.pair=none",
    "whole-word": "objective.masking=whole_word",
    "span": "objective.masking=span objective.span_boundary=True",
    "sop": "objective.pair=sop",
    "rtd": "objective.kind=rtd objective.pair=none objective.generator_size=0.5 "
    "model.heads=4 model.embedding=24",
    "pre-norm": "model.norm=pre",
    "rope": "model.position=rope",
    "geglu": "model.feed_forward=geglu",
    "albert": "model.layer_groups=1 model.embedding=16",
    "mamba": "model.mixer=mamba",
    "modern": "model.norm=rms model.feed_forward=swiglu model.window=8 "
    "model.position=rope model.layers=4 objective.pair=none",
}


def settings(edits: str, store: Path) -> config.Config:
    shared = f"steps={STEPS} data.store={store} optim.peak_rate=3e-3 "
    shared += "phases[0].length=32 phases[0].batch=8 objective.rtd_factor=5.0 "
    return config.load(CONFIG, (shared + edits).split())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    text = corpus.write(folder / "text.txt")
    edits = [f"data.source={text}", "data.num_workers=1"]
    prepare_store(config.load(CONFIG, edits), str(folder / "store"), 1)
    return folder / "store"


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant(name, store, tmp_path):
    opened = open_store(str(store))
    size = f" model.vocab_size={opened.vocabulary.size}"
    chosen = settings(VARIANTS[name] + size, store)
    task, batches = task_of(chosen), Batches(opened, chosen, 0)
    optimizer = optim.optimizer(chosen.optim, STEPS)
    schedule = optim.learning_rate(chosen.optim, STEPS)

    def on(*axes):
        devices = jax.devices()[: int(np.prod(axes))]
        mesh = sharding.make_mesh(config.Mesh(*axes), devices)
        made = step.make_train_step(task, optimizer, schedule, mesh, chosen.seed)
        return mesh, made

    def run(train_step, state, first, last):
        history = []
        for number in range(first, last):
            state, metrics = train_step(state, batches.batch(number))
            history.append({k: float(v) for k, v in metrics.items()})
        return state, history

    one, alone = on(1, 1, 1)
    begin = jax.device_get(step.init_state(task, optimizer, one, 7))
    state = jax.device_put(begin, step.state_shardings(task, optimizer, one))
    _, history = run(alone, state, 0, STEPS)
    losses = [line["loss"] for line in history]
    assert np.mean(losses[-20:]) < np.mean(losses[:100])
    assert min(losses[-20:]) > 0

    eight, train_step = on(2, 2, 2)
    places = step.state_shardings(task, optimizer, eight)
    middle, before = run(train_step, jax.device_put(begin, places), 0, STOP)
    for line, other in zip(before, history, strict=False):
        assert line == pytest.approx(other, rel=2e-5, abs=1e-6)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(STOP, middle)
        checkpoints.wait()
        whole, after = run(train_step, middle, STOP, 3 * STOP)
        abstract = step.abstract_state(task, optimizer, eight)
        resumed = checkpoints.restore(abstract)
    resumed, again = run(train_step, resumed, STOP, 3 * STOP)
    assert again == after
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get([whole, resumed]))
