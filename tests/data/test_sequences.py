"""Labelled sequences: framing as the original, and batches that lose nothing."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import Phase, Tokenizer
from bert_jax.data.sequences import ExampleBatches, frame, round_up
from bert_jax.data.tokenizer import load_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(60))]
TEXT = st.lists(st.integers(0, 59), max_size=30).map(
    lambda numbers: " ".join(f"w{i}" for i in numbers)
)


def _tokenizer(folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return load_tokenizer(folder, Tokenizer())


def _by_hand(tokenizer, first, second, limit):
    """One pair, shortened token by token as the original code does."""
    a, b = tokenizer.encode(first), tokenizer.encode(second or "")
    while len(a) + len(b) > limit - (2 if second is None else 3):
        (a if len(a) > len(b) else b).pop()
    token = [2, *a, 3] if second is None else [2, *a, 3, *b, 3]
    return token, [0] * (len(a) + 2) + [1] * (len(token) - len(a) - 2)


PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6)


@settings(max_examples=60)
@given(pairs=PAIRS, limit=st.integers(5, 40))
def test_frames_are_cut_as_in_the_original(tmp_path_factory, pairs, limit):
    tokenizer = _tokenizer(tmp_path_factory.mktemp("words"))
    first, second = (list(column) for column in zip(*pairs, strict=True))
    for more in (None, second):
        found = frame(tokenizer, first, more, limit)
        for i, text in enumerate(first):
            own = slice(found.offset[i], found.offset[i + 1])
            wanted = _by_hand(tokenizer, text, None if more is None else more[i], limit)
            assert (found.token[own].tolist(), found.segment[own].tolist()) == wanted


def _batches(tmp_path, count, **phase):
    rng = np.random.default_rng(count)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 60, n)) for n in range(count)]
    sequences = frame(_tokenizer(tmp_path), texts, None, 30)
    shape = Phase(length=30, **{"batch": 7, "max_packed": 4} | phase)
    labels = np.arange(count, dtype=np.int32)
    return sequences, ExampleBatches(sequences, labels, shape, 3, unit=2)


def test_an_epoch_shows_every_example_once(tmp_path):
    sequences, batches = _batches(tmp_path, 25)
    orders = []
    for epoch in range(2):
        seen = []
        for number in range(epoch * 4, epoch * 4 + 4):
            batch = batches.batch(number)
            assert len(batch["token"]) % 2 == 0
            rows, slots = np.nonzero(batch["weight"])
            for row, slot in zip(rows, slots, strict=True):
                label = batch["label"][row, slot]
                where = batch["example"][row] == slot + 1
                own = slice(sequences.offset[label], sequences.offset[label + 1])
                for name, whole in (
                    ("token", sequences.token),
                    ("segment", sequences.segment),
                ):
                    np.testing.assert_array_equal(batch[name][row, where], whole[own])
                assert (np.diff(batch["position"][row, where]) == 1).all()
                assert np.flatnonzero(where)[0] == batch["nsp_position"][row, slot]
            seen += batch["label"][rows, slots].tolist()
            assert (batch["token"][batch["example"] == 0] == 0).all()
        assert sorted(seen) == list(range(25))
        orders.append(seen)
    assert orders[0] != orders[1]


def test_hosts_share_a_batch(tmp_path):
    _, batches = _batches(tmp_path, 25)
    whole = batches.batch(2)
    parts = [batches.batch(2, (i, 2)) for i in range(2)]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), array)


def test_outputs_return_to_the_order_of_the_examples(tmp_path):
    sequences, _ = _batches(tmp_path, 25)
    labels = np.arange(25, dtype=np.float32)
    shape = Phase(length=30, batch=7, max_packed=4)
    batches = ExampleBatches(sequences, labels, shape, None)
    outputs = [batches.batch(n)["label"][:, :, None] * 2 for n in range(len(batches))]
    np.testing.assert_array_equal(batches.collect(outputs)[:, 0], labels * 2)


@given(st.integers(1, 5_000))
def test_few_shapes_and_little_padding(count):
    size = round_up(count)
    assert count <= size <= max(1.5 * count, count + 1)
    assert size == round_up(size)
