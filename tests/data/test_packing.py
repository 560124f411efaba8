"""Packing puts every example somewhere, never over-fills, and fills well."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.packing import pack


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=200),
    st.integers(40, 60),
    st.integers(1, 9),
)
def test_every_example_once_and_no_row_overfull(lengths, capacity, most):
    length = np.array(lengths)
    order = np.random.default_rng(0).permutation(len(length))
    rows = pack(length, capacity, most, order)
    used = rows >= 0
    assert sorted(rows[used].tolist()) == list(range(len(length)))
    assert (np.where(used, length[rows], 0).sum(1) <= capacity).all()
    assert used[:, 0].all() and rows.shape[1] == most


def test_one_example_a_row_is_unpacked():
    length = np.array([3, 7, 5])
    rows = pack(length, 10, 1, np.arange(3))
    assert rows.shape == (3, 1)


def test_random_lengths_fill_rows():
    length = np.random.default_rng(0).integers(5, 512, 20_000)
    rows = pack(length, 512, 16, np.arange(len(length)))
    assert length.sum() / (len(rows) * 512) > 0.99
