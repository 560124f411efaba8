"""FLOPs by the published figures, and device peaks."""

import pytest

from bert_jax.config import Objective
from bert_jax.config.presets import model
from bert_jax.metrics import device_peak, train_flops


@pytest.mark.parametrize(
    ("size", "length", "masked", "expected"),
    [
        ("large", 128, 20, 1.880e9),
        ("large", 512, 76, 1.993e9),
        ("base", 128, 19, 0.545e9),
    ],
)
def test_flops_a_token(size, length, masked, expected):
    flops = train_flops(model(size), length, masked)
    assert flops / length == pytest.approx(expected, rel=2e-3)


def test_the_span_boundary_head_costs_more_than_the_other():
    sizes = model("base")
    hidden, vocabulary = 768, 30_522
    more = train_flops(sizes, 128, 19, Objective(span_boundary=True)) - train_flops(
        sizes, 128, 19
    )
    head = 3 * hidden * hidden + hidden * hidden + hidden * vocabulary
    assert more == pytest.approx(3 * 2 * 19 * head)


def test_a_teacher_costs_its_forward_pass():
    student, teacher = model("small"), model("base")
    alone = train_flops(student, 128, 19)
    forward = train_flops(teacher, 128, 19) / 3
    taught = train_flops(student, 128, 19, Objective(pair="none"), teacher)
    assert taught == pytest.approx(alone + forward)


def test_both_halves_of_an_electra_are_counted():
    sizes, length, masked = model("base"), 128, 19
    hidden, mlp, vocabulary, layers = 768, 3072, 30_522, 12
    share = Objective(kind="rtd", pair="none", generator_size=0.25)

    def encoder(width, inner):
        one = 4 * width**2 + 2 * width * length + 2 * width * inner
        return length * layers * one

    small = encoder(hidden // 4, mlp // 4) + length * hidden // 4 * hidden
    head = masked * (hidden // 4 * hidden + hidden * vocabulary)
    found = encoder(hidden, mlp) + length * (hidden**2 + hidden)
    expected = 6 * (small + head + found)
    assert train_flops(sizes, length, masked, share) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("TPU v3", 123e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v6e", 918e12),
        ("cpu", None),
        ("NVIDIA RTX A1000", None),
        ("TPU v4 lite", None),
    ],
)
def test_device_peak(kind, peak):
    assert device_peak(kind) == peak
