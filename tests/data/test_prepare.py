import dataclasses
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bert_jax.config import Config
from bert_jax.data import blocks, prepare
from bert_jax.data.store import open_store, store_tokenizer
from bert_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def write_corpus(path, documents=60):
    rng = np.random.default_rng(7)
    words = np.array("the a cat dog sat ran on under mat table quietly".split())
    with open(path, "w") as file:
        for number in range(documents):
            for _ in range(rng.integers(1, 5)):
                size = rng.integers(2, 9)
                file.write(
                    f"{' '.join(rng.choice(words, size))} {number}. Then more!\n"
                )
            file.write("\n")
    return path


def make(source, vocab_size=180, tokenizer=None, **data):
    config = Config()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source=(str(source),), **data),
        tokenizer=dataclasses.replace(config.tokenizer, **tokenizer or {}),
        model=dataclasses.replace(config.model, vocab_size=vocab_size),
    )


def content(directory):
    found = {path.name: path.read_bytes() for path in Path(directory).iterdir()}
    manifest = json.loads(found.pop("manifest.json"))
    manifest.pop("seconds")
    return found, manifest


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK", 900)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "a.txt")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "byte_bpe", "unigram"])
def test_the_store_holds_every_sentence_of_the_corpus(corpus, tmp_path, kind):
    config = make(corpus, 300, {"kind": kind})
    manifest = prepare.prepare_store(config, tmp_path / "store", 1)
    store = open_store(str(tmp_path / "store"))
    tokenizer = store_tokenizer(store.path)
    sentences = []
    for document in corpus.read_text().strip().split("\n\n"):
        sentences.append([])
        for line in document.split("\n"):
            first, second = line.split(". ")
            sentences[-1] += [first + ".", second]
    flat = [sentence for document in sentences for sentence in document]
    assert np.diff(store.documents).tolist() == [len(d) for d in sentences]
    assert store.tokens.dtype == np.uint16
    for number, sentence in enumerate(flat):
        start, end = store.sentences[number : number + 2]
        assert store.tokens[start:end].tolist() == tokenizer.encode(sentence)
    assert len(np.unique(store.hashes)) == len(sentences)
    assert manifest["documents"] == 60
    assert not manifest["already_prepared"]
    assert store.tokens.min() > 0
    assert not Path(f"{tmp_path}/store.partial").exists()


def test_any_number_of_workers_gives_the_same_bytes(corpus, tmp_path):
    big = write_corpus(tmp_path / "big.txt", 30_000)  # some 4.5 MB: several blocks
    found = {}
    for workers in (1, 2):
        directory = tmp_path / str(workers)
        prepare.prepare_store(make(big), directory, workers)
        found[workers] = content(directory)
    assert found[1] == found[2]


@pytest.mark.usefixtures("small_blocks")
def test_parts_of_a_stopped_run_are_taken_over(corpus, tmp_path, monkeypatch):
    config, directory = make(corpus), tmp_path / "store"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_join", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare_store(config, directory, 1)
    with pytest.raises(UserError, match="run `python -m bert_jax prepare`"):
        open_store(str(directory))
    calls = []
    encode = blocks.encode
    parts = sorted(Path(f"{directory}.partial").glob("part-*.npz"))
    parts[1].unlink()
    parts[2].write_bytes(parts[2].read_bytes()[:99])
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "encode", lambda *args: calls.append(1) or encode(*args))
        prepare.prepare_store(config, directory, 1)
    assert len(calls) == 2 < len(parts)
    prepare.prepare_store(config, tmp_path / "unbroken", 1)
    assert content(directory) == content(tmp_path / "unbroken")


def test_two_at_once_make_one_store(corpus, tmp_path, monkeypatch):
    config, directory = make(corpus), tmp_path / "store"
    build, built, told, results = prepare._build, [], [], []

    def slowly(*args):
        built.append(1)
        other.start()
        while not told:
            time.sleep(0.01)
        return build(*args)

    def again():
        results.append(prepare.prepare_store(config, directory, 1, told.append))

    other = threading.Thread(target=again)
    monkeypatch.setattr(prepare, "_build", slowly)
    monkeypatch.setattr(prepare, "_WAIT", 0.01)
    manifest = prepare.prepare_store(config, directory, 1)
    other.join()
    assert built == [1] and "waiting" in told[0] and len(told) == 1
    assert results == [{**manifest, "already_prepared": True}]
    assert not Path(f"{directory}.partial").exists()


@pytest.mark.slow
def test_a_killed_prepare_leaves_no_store_and_no_process(tmp_path):
    big = write_corpus(tmp_path / "big.txt", 30_000)
    script = (
        "import sys; from bert_jax.config import Config; import dataclasses as d\n"
        "from bert_jax.data.prepare import prepare_store\n"
        "if __name__ == '__main__':\n"
        "    c = Config(); data = d.replace(c.data, source=(sys.argv[1],))\n"
        "    model = d.replace(c.model, vocab_size=180)\n"
        "    c = d.replace(c, data=data, model=model)\n"
        "    prepare_store(c, sys.argv[2], 2, lambda text: print(text, flush=True))\n"
    )
    file, directory = tmp_path / "run.py", tmp_path / "store"
    file.write_text(script)
    run = subprocess.Popen(
        [sys.executable, file, big, directory],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.stdout is not None
    for line in run.stdout:
        if "encoded" in line:
            break
    run.send_signal(signal.SIGKILL)
    run.wait()
    # The workers hold the pipe too: it closes when the last of them has ended.
    deadline = time.monotonic() + 20
    run.stdout.read()
    assert time.monotonic() < deadline
    run.stdout.close()
    assert not directory.exists()
    prepare.prepare_store(make(big), directory, 1)
    prepare.prepare_store(make(big), tmp_path / "unbroken", 1)
    assert content(directory) == content(tmp_path / "unbroken")


def test_the_same_again_changes_nothing(corpus, tmp_path):
    directory = tmp_path / "store"
    prepare.prepare_store(make(corpus), directory, 1)
    before = {path: path.stat() for path in directory.iterdir()}
    manifest = prepare.prepare_store(make(corpus), directory, 1)
    assert manifest["already_prepared"]
    assert {path: path.stat() for path in directory.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 179}, "vocab_size=180.*vocab_size=179"),
        ({"tokenizer": {"kind": "bpe"}}, "tokenizer="),
        ({"language": "ko"}, "language=en"),
    ],
)
def test_a_store_of_something_else_is_left_alone(corpus, tmp_path, changes, message):
    directory = tmp_path / "store"
    prepare.prepare_store(make(corpus), directory, 1)
    before = content(directory)
    with pytest.raises(UserError, match=rf"was made from.*{message}.*delete it"):
        prepare.prepare_store(make(corpus, **changes), directory, 1)
    assert content(directory) == before


def test_a_directory_that_is_no_store_is_left_alone(corpus, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is no token store.*--config.data.store"):
        prepare.prepare_store(make(corpus), tmp_path, 1)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/store.partial: cannot be written"):
        prepare.prepare_store(make(corpus), tmp_path / "file" / "store", 1)


def test_a_loaded_vocabulary_must_fit_the_model(corpus, tmp_path):
    prepare.prepare_store(make(corpus), tmp_path / "a", 1)
    path = str(tmp_path / "a" / "vocab.txt")
    size = len((tmp_path / "a" / "vocab.txt").read_text().splitlines())
    again = make(corpus, size, {"path": path})
    prepare.prepare_store(again, tmp_path / "b", 1)
    first, second = (open_store(str(tmp_path / name)) for name in "ab")
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert first.vocabulary.hash == second.vocabulary.hash
    with pytest.raises(
        UserError, match=rf"config.model.vocab_size={size - 1}.*{size} "
    ):
        small = make(corpus, size - 1, {"path": path})
        prepare.prepare_store(small, tmp_path / "c", 1)


def test_a_vocabulary_larger_than_the_forced_type_is_refused(corpus, tmp_path):
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat".split()
    words += [f"w{number}" for number in range(1 << 16)]
    (tmp_path / "vocab.txt").write_text("".join(word + "\n" for word in words))
    settings = {"path": str(tmp_path / "vocab.txt")}
    forced = make(corpus, 70_000, settings, dtype="uint16")
    with pytest.raises(UserError, match="config.data.dtype=uint16.*65,543.*auto"):
        prepare.prepare_store(forced, tmp_path / "a", 1)
    prepare.prepare_store(make(corpus, 70_000, settings), tmp_path / "b", 1)
    assert open_store(str(tmp_path / "b")).tokens.dtype == np.uint32


def test_what_was_skipped_stands_in_the_manifest(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"the cat\nb\xffad\n\n\xe2\x80\x8b\n\nthe dog\n")
    manifest = prepare.prepare_store(make(file), tmp_path / "store", 1)
    assert manifest["skipped"] == {"bad_utf8_lines": 1, "empty_documents": 1}
    assert manifest["documents"] == 2
    file.write_bytes(b"\xe2\x80\x8b\n")
    with pytest.raises(UserError, match="config.data.source="):
        prepare.prepare_store(make(file), tmp_path / "none", 1)


def test_the_training_sample_is_even_and_bounded(corpus):
    config = make(corpus, tokenizer={"train_bytes": 2000})
    lines = list(prepare._Sample(config))
    assert 500 < sum(map(len, lines)) <= 2000
    numbers = [int(line.split(".")[0].split()[-1]) for line in lines]
    assert numbers == sorted(numbers)
    assert min(numbers) < 20
    assert max(numbers) > 40


def test_content_decides_whether_a_store_is_prepared_already(corpus, tmp_path):
    text, store = tmp_path / "text", tmp_path / "store"
    text.mkdir()
    file = shutil.copy(corpus, text / "a[1], b.txt")

    def ready(source):
        return prepare.prepare_store(make(source), store, 1)["already_prepared"]

    assert not ready(text / "*.txt")
    assert ready(text / "*.txt")
    copy = shutil.copytree(text, tmp_path / "copy[2]")
    for source in (copy, copy / "a[1], b.txt", f"{glob.escape(str(copy))}/a*"):
        assert ready(source)
    stat, old = os.stat(file), file.read_text()
    file.write_text(old.replace("cat", "CAT"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match="made from other text"):
        ready(text / "*.txt")
    file.write_text(old)
    assert ready(text / "*.txt") and ready(copy)
