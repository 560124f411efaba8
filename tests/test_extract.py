"""Feature extraction: packed, in windows and stopped, it equals one line at a time."""

import json

import jax
import numpy as np
import pyarrow.parquet
import pytest

from bert_jax import extract as extraction
from bert_jax import interop
from bert_jax.__main__ import main
from bert_jax.model import Bert
from tests import random_run

LINES = 90


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, a text file, and a source of truth: hidden states line by line."""
    folder = tmp_path_factory.mktemp("extract")
    run = random_run.write(folder)
    text = random_run.text(LINES)
    (folder / "text.txt").write_text(text)
    return folder, run, _one_by_one(folder / "hf", text)


def _one_by_one(source, text):
    """[N + 1, length, D] and the ids of each line, unpacked, padded to the limit."""
    found = interop.load(source)
    words = found.tokenizer.vocabulary()
    bert = Bert(found.model, keep="hidden")
    apply = jax.jit(bert.apply, static_argnames="method")
    variables = {"params": found.params}
    limit, lines = found.model.positions, []
    for line in text.splitlines():
        ids = [words.cls, *found.tokenizer.encode(line)[: limit - 2], words.sep]
        token = np.zeros((1, limit), np.int32)
        token[0, : len(ids)] = ids
        place = np.arange(limit, dtype=np.int32)[None]
        example = (place < len(ids)).astype(np.int32)
        batch = {"token": token, "position": place, "example": example}
        batch["segment"] = np.zeros_like(token)
        states = apply(variables, batch, method="hidden_states")
        lines.append((np.asarray(states)[:, 0, : len(ids)], ids))
    return lines


def _run(made, output, *flags):
    folder, run, _ = made
    own = {"--input": folder / "text.txt", "--output": output}
    given = {flag.partition("=")[0] for flag in flags}
    rest = [f"{name}={path}" for name, path in own.items() if name not in given]
    return main(["extract", f"--workdir={run}", *rest, *flags])


FORMS = {
    "last": lambda h: h[5],
    "second_to_last": lambda h: h[4],
    "embeddings": lambda h: h[0],
    "sum_last_4": lambda h: h[2:].sum(0),
    "mean_last_2": lambda h: h[4:].mean(0),
    "concat_last_4": lambda h: np.concatenate(h[2:], -1),
    "sum_all": lambda h: h[1:].sum(0),
    "concat:0,-2,3": lambda h: np.concatenate(h[[0, 4, 3]], -1),
}


@pytest.mark.parametrize(
    ("layers", "pool"),
    [
        *((layers, "none") for layers in FORMS),
        *(
            (layers, pool)
            for layers in ("last", "concat_last_4")
            for pool in ("cls", "mean")
        ),
    ],
)
def test_equals_one_line_at_a_time(made, tmp_path, layers, pool):
    output = tmp_path / "f.npz"
    assert (
        _run(
            made, output, f"--layers={layers}", f"--pool={pool}", "--batch-tokens=1500"
        )
        == 0
    )
    found = np.load(output)
    states = [FORMS[layers](h) for h, _ in made[2]]
    if pool == "none":
        assert found["features"].shape == (sum(map(len, states)), states[0].shape[1])
        for i, state in enumerate(states):
            begin, end = found["offset"][i : i + 2]
            assert found["token"][begin:end].tolist() == made[2][i][1]
            np.testing.assert_allclose(found["features"][begin:end], state, 1e-4, 1e-5)
    else:
        pooled = [x[0] if pool == "cls" else x.mean(0) for x in states]
        np.testing.assert_allclose(found["features"], pooled, 1e-4, 1e-5)
    assert not list(tmp_path.glob("*partial*"))


def test_spans_name_the_characters_of_each_token(made, tmp_path):
    assert _run(made, tmp_path / "f.npz", "--pool=none") == 0
    found = np.load(tmp_path / "f.npz")
    lines = (made[0] / "text.txt").read_text().splitlines()
    for i, line in enumerate(lines):
        span = found["span"][found["offset"][i] : found["offset"][i + 1]]
        assert not span[[0, -1]].any()
        pieces = [line[a:b] for a, b in span[1:-1]]
        assert "".join(pieces) == line.replace(" ", "")[: len("".join(pieces))]


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_a_stopped_job_goes_on(made, tmp_path, monkeypatch, pool, capsys):
    assert _run(made, tmp_path / "whole.npz", f"--pool={pool}") == 0
    monkeypatch.setitem(extraction._WINDOW, pool, 300)
    calls = []

    class Stopped(Exception):
        pass

    window = extraction._Run.window

    def stopping(self, texts):
        calls.append(len(texts.offset))
        if len(calls) == 3:
            raise Stopped
        return window(self, texts)

    monkeypatch.setattr(extraction._Run, "window", stopping)
    with pytest.raises(Stopped):
        _run(made, tmp_path / "f.npz", f"--pool={pool}")
    # Another job does not take over what this one left.
    assert _run(made, tmp_path / "f.npz", "--pool=cls") == 2
    assert "another job" in capsys.readouterr().err
    assert _run(made, tmp_path / "f.npz", f"--pool={pool}") == 0
    assert len(calls) > 5  # windows, of which the first two were not done again
    found, wanted = np.load(tmp_path / "f.npz"), np.load(tmp_path / "whole.npz")
    assert found.files == wanted.files
    for name in wanted.files:
        np.testing.assert_allclose(found[name], wanted[name], 1e-4, 1e-5)


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_parquet_holds_the_same(made, tmp_path, pool, monkeypatch):
    monkeypatch.setitem(extraction._WINDOW, pool, 400)
    for suffix in ("npz", "parquet"):
        assert _run(made, tmp_path / f"f.{suffix}", f"--pool={pool}") == 0
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pydict()
    arrays = np.load(tmp_path / "f.npz")
    assert len(table["features"]) == LINES
    for name in set(arrays.files) - {"offset"}:
        rows = table[name]
        joined = np.concatenate(rows) if pool == "none" else np.array(rows)
        np.testing.assert_array_equal(joined, arrays[name])


def test_json_counts(made, tmp_path, capsys):
    assert _run(made, tmp_path / "f.npz", "--json", "--max-length=12") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    lengths = [min(len(ids), 12) for _, ids in made[2]]
    assert told["lines"] == LINES and told["tokens"] == sum(lengths)
    assert told["cut"] == sum(len(ids) > 12 for _, ids in made[2])
    assert told["features"] == 24


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers=sum_last_9"], "the model has layers 1 to 5"),
        (["--layers=concat:0,6"], "the model has layers 1 to 5"),
        (["--layers=first"], "use a form like"),
        (["--pool=max"], "invalid choice: 'max'"),
        (["--max-length=161"], "3 to 160"),
        (["--batch-tokens=0"], "--batch-tokens=0"),
        (["--input=gone.txt"], "gone.txt"),
        (["--output=f.csv"], "must end in .npz or .parquet"),
        (["--output=setup.py"], "must end in"),
    ],
)
def test_bad_input(made, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert _run(made, tmp_path / "f.npz", *flags) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_kept(made, tmp_path, capsys):
    (tmp_path / "f.npz").write_text("precious")
    assert _run(made, tmp_path / "f.npz") == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "f.npz").read_text() == "precious"
