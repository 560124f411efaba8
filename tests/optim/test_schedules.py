import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import config, optim

STEPS = 200
BASE = config.Optim(peak_rate=0.4, end_rate=0.1, warmup_share=0.1)  # 20 steps


def rates(steps=STEPS, **edits):
    schedule = optim.learning_rate(dataclasses.replace(BASE, **edits), steps)
    return lambda step: float(np.asarray(schedule(step)))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "rsqrt", "constant"])
def test_warm_up_is_linear_and_meets_the_decay(schedule):
    rate = rates(schedule=schedule)
    assert [rate(0), rate(5), rate(10)] == pytest.approx([0, 0.1, 0.2])
    assert rate(20) == pytest.approx(0.4)
    assert rate(21) <= rate(20)


@pytest.mark.parametrize(
    ("schedule", "middle", "end", "after"),
    [
        ("linear", 0.25, 0.1, 0.1),
        ("cosine", 0.25, 0.1, 0.1),
        ("rsqrt", 0.4 * math.sqrt(20 / 110), 0.4 / math.sqrt(10), 0.1),
        ("constant", 0.4, 0.4, 0.4),
    ],
)
def test_corners(schedule, middle, end, after):
    rate = rates(schedule=schedule)
    assert rate(110) == pytest.approx(middle)
    assert rate(200) == pytest.approx(end)
    assert rate(320) == pytest.approx(after)


def test_decay_from_the_start_drops_where_the_warm_up_ends():
    rate = rates(decay_from="start", end_rate=0.0)
    assert rate(19) == pytest.approx(0.4 * 19 / 20)
    assert rate(20) == pytest.approx(0.4 * (1 - 20 / 200))
    assert rate(200) == 0


@settings(max_examples=25, deadline=None)
@given(
    step=st.integers(0, 1_000_000),
    steps=st.integers(1, 1_000_000),
    warmup_share=st.floats(0, 0.999),
    schedule=st.sampled_from(["linear", "cosine", "rsqrt", "constant"]),
    decay_from=st.sampled_from(["warmup", "start"]),
)
def test_rate_stays_between_zero_and_peak(step, steps, **edits):
    rate = rates(steps, **edits)(step)
    assert np.isfinite(rate)
    assert 0 <= rate <= 0.4 * (1 + 1e-6)
