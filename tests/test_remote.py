"""Runs and stores in a bucket: one in memory, and an emulator of gs://."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import fsspec
import numpy as np
import pytest

from bert_jax import remote
from bert_jax.cli.arguments import parse
from bert_jax.errors import UserError
from tests import bucket
from tests.cli import corpus
from tests.faults import group
from tests.faults.group import Group

URL = "memory://bucket/run"


@pytest.fixture
def memory():
    found = fsspec.filesystem("memory")
    yield found
    found.store.clear()
    found.pseudo_dirs[:] = [""]


def put(memory, name: str, text: str) -> None:
    memory.pipe_file(f"{URL}/{name}", text.encode())


def names(memory) -> set[str]:
    return {name.removeprefix("/bucket/run/") for name in memory.find("/bucket/run")}


def test_a_run_comes_and_goes_without_what_is_large(memory):
    put(memory, "config.json", "{}")
    put(memory, "tokenizer/vocab.txt", "a b")
    put(memory, "checkpoints/4/params/d", "large")
    put(memory, "store/tokens.bin", "large")
    folder = Path(remote.open_run(URL + "/"))
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {"config.json", "tokenizer/vocab.txt"}
    (folder / "metrics.jsonl").write_text("1\n")
    (folder / ".metrics.jsonl.tmp").write_text("half")
    remote.push(folder)
    assert names(memory) - found == {
        *("metrics.jsonl", "checkpoints/4/params/d", "store/tokens.bin")
    }


def test_where_a_run_lies(monkeypatch):
    assert str(remote.where("runs/a", "checkpoints")) == "runs/a/checkpoints"
    monkeypatch.setitem(remote._folders, "/tmp/a", ("gs://bucket/run", {}))
    place = remote.where("/tmp/a", "checkpoints")
    assert str(place) == "gs://bucket/run/checkpoints"
    with pytest.raises(UserError, match="needs a local directory"):
        parse([f"--workdir={place}"], "", "bert-jax sweep", remote_workdir=False)
    with pytest.raises(UserError, match="only gs:// can be used"):
        parse(["--workdir=s3://bucket/run"], "", "bert-jax train")


def test_only_what_changed_is_pushed_and_the_summary_last(memory, monkeypatch):
    put(memory, "config.json", "{}")
    folder = Path(remote.open_run(URL))
    sent = []
    put_file = type(memory).put_file

    def note(self, source, target, **more):
        sent.append(target.removeprefix(URL + "/"))
        put_file(self, source, target, **more)

    monkeypatch.setattr(type(memory), "put_file", note)
    remote.push(folder)
    assert sent == []
    for name in ("summary.json", "events.jsonl", "tokenizer.json"):
        (folder / name).write_text(name)
    remote.push(folder)
    assert sorted(sent) == ["events.jsonl", "summary.json", "tokenizer.json"]
    assert sent[-1] == "summary.json"
    (folder / "events.jsonl").write_text("more")
    remote.push(folder)
    assert sent[3:] == ["events.jsonl"]


def test_what_could_not_be_pushed_is_pushed_later(memory, monkeypatch):
    folder = Path(remote.open_run(URL))
    (folder / "a").write_text("1")
    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", refuse(ConnectionError("no route")))
        with pytest.raises(UserError, match=r"cannot be reached \(no route\)"):
            remote.push(folder)
    remote.push(folder)
    assert names(memory) == {"a"}


def test_the_bucket_is_right_after_a_kill(memory):
    """What a process had not pushed is not seen by the next, nor what is newer lost."""
    killed = Path(remote.open_run(URL))
    (killed / "metrics.jsonl").write_text("1\n")
    remote.push(killed)
    (killed / "metrics.jsonl").write_text("1\n2\n")
    put(memory, "config.json", "newer")
    after = Path(remote.open_run(URL))
    assert (after / "metrics.jsonl").read_text() == "1\n"
    assert (after / "config.json").read_text() == "newer"


def refuse(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("name", ["a[x]", "a*", "a?b", "a%20", "a#b", "a b", "a\n"])
def test_a_name_that_a_bucket_reads_as_a_pattern_is_refused(memory, name):
    with pytest.raises(UserError, match="choose another name"):
        remote.open_run(f"memory://bucket/{name}/run")


class HttpError(Exception):
    """As gcsfs has it."""

    __module__ = "gcsfs.retry"

    def __init__(self, code: int):
        super().__init__(f"Anonymous caller, {code}")
        self.code = code


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError("b/bucket"), "make the bucket, or mend the URL"),
        (OSError("Forbidden: b/bucket"), "roles storage.objectAdmin"),
        (HttpError(401), "gcloud auth application-default login"),
        (HttpError(500), "the same command goes on"),
        (ImportError("gcsfs"), r"pip install 'bert-jax\[gcs\]'"),
        (TimeoutError(), "cannot be reached"),
    ],
    ids=repr,
)
def test_errors_say_what_to_do(memory, monkeypatch, error, told):
    monkeypatch.setattr(type(memory), "find", refuse(error))
    with pytest.raises(UserError, match=told):
        remote.open_run(URL)


def test_a_bug_stays_a_bug(memory, monkeypatch):
    monkeypatch.setattr(type(memory), "find", refuse(KeyError("name")))
    with pytest.raises(KeyError):
        remote.open_run(URL)


@pytest.fixture
def store(memory, tmp_path, monkeypatch) -> str:
    """A store of two files, uploaded."""
    monkeypatch.setenv("BERT_JAX_CACHE", str(tmp_path / "first"))
    url = "memory://bucket/store"
    made = remote.staging(url)
    made.mkdir(parents=True)
    (made / "tokens.bin").write_bytes(bytes(range(256)) * 400)
    (made / "vocab.txt").write_text("a b c")
    manifest = {"checksums": remote.checksums(made)}
    (made / "manifest.json").write_text(json.dumps(manifest))
    remote.upload(made, url, lambda text: None)
    return url


def test_a_store_is_copied_once_for_all_who_ask(store, tmp_path, monkeypatch):
    told: list[str] = []
    copy = Path(remote.fetch(store, told.append))
    assert not told, "the maker has its copy already"
    assert copy.is_relative_to(tmp_path / "first")
    monkeypatch.setenv("BERT_JAX_CACHE", str(tmp_path / "second"))
    found: list[str] = []

    def ask():
        found.append(remote.fetch(store, told.append))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert sum(text.startswith("copied") for text in told) == 1
    assert "copying memory://bucket/store: 0 of 0 MB" in told
    assert remote.checksums(Path(found[0])) == remote.checksums(copy)


def test_another_store_at_the_same_url_is_another_copy(store, memory):
    first = remote.fetch(store, print)
    text = memory.cat_file(f"{store}/manifest.json")
    memory.pipe_file(f"{store}/manifest.json", text + b"\n")
    assert remote.fetch(store, print) != first


def test_a_damaged_store_is_found(store, memory, tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_JAX_CACHE", str(tmp_path / "second"))
    good = memory.cat_file(f"{store}/tokens.bin")
    memory.pipe_file(f"{store}/tokens.bin", b"x" + good[1:])
    with pytest.raises(UserError, match=r"tokens\.bin is damaged"):
        remote.fetch(store, print)
    memory.pipe_file(f"{store}/tokens.bin", good)
    assert Path(remote.fetch(store, print), "tokens.bin").read_bytes() == good


def test_a_copy_that_was_killed_goes_on(store, memory, tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_JAX_CACHE", str(tmp_path / "second"))
    checksum = remote.checksum

    def killed(path):
        if path.name == "vocab.txt":
            raise KeyboardInterrupt
        return checksum(path)

    (place,) = {remote._place(store, memory.cat_file(f"{store}/manifest.json"))}
    partial = Path(f"{place}.partial")
    partial.mkdir(parents=True)
    (partial / "tokens.bin").write_bytes(bytes(range(256)) * 400)
    (partial / "vocab.txt").write_text("a")
    opened = []
    real = type(memory).open

    def note(self, path, *args, **more):
        opened.append(path.rpartition("/")[2])
        return real(self, path, *args, **more)

    monkeypatch.setattr(type(memory), "open", note)
    found = Path(remote.fetch(store, print))
    assert (found / "vocab.txt").read_text() == "a b c"
    assert "vocab.txt" in opened and "tokens.bin" not in opened
    assert not partial.exists()


def test_no_store_there(memory):
    put(memory, "a", "1")
    with pytest.raises(UserError, match="no token store there"):
        remote.fetch(URL, print)


# --- gs:// itself, against an emulator ---


def flags(folder: Path) -> list[str]:
    return [
        "--config=configs/bert_tiny.py:smoke",
        f"--config.data.source={folder / 'text.txt'}",
        "--config.data.num_workers=1",
        "--config.data.store=gs://bucket/store",
        "--config.steps=20",
        "--config.save_every=4",
        "--config.eval_every=8",
        "--config.log_every=1",
        "--config.keep_last=3",
        "--config.hang_after=120",
        "--config.model.hidden=32",
        "--config.model.heads=2",
        "--config.model.mlp=64",
    ]


class Bucket:
    def __init__(self, environ: dict[str, str]):
        self.environ, self.url = environ, environ["STORAGE_EMULATOR_HOST"]

    def text(self, name: str) -> str:
        try:
            with urllib.request.urlopen(f"{self.url}/bucket/{name}", timeout=60) as got:
                return got.read().decode()
        except urllib.error.HTTPError:
            return ""

    def names(self, prefix: str) -> list[str]:
        url = f"{self.url}/storage/v1/b/bucket/o?prefix={prefix}"
        with urllib.request.urlopen(url, timeout=60) as got:
            return [item["name"] for item in json.load(got).get("items", [])]

    def delete(self, name: str) -> None:
        url = f"{self.url}/storage/v1/b/bucket/o/{name.replace('/', '%2F')}"
        request = urllib.request.Request(url, method="DELETE")
        urllib.request.urlopen(request, timeout=60).close()

    def lines(self, run: str) -> list[dict]:
        return [
            json.loads(line) for line in self.text(f"{run}/metrics.jsonl").splitlines()
        ]

    def steps(self, run: str) -> list[int]:
        """Of the checkpoints that are complete."""
        found = self.names(f"{run}/checkpoints/")
        return sorted(
            int(name.split("/")[2])
            for name in found
            if name.endswith("commit_success.txt") and name.count("/") == 3
        )


@pytest.mark.slow
def test_killed_and_continued_in_a_bucket(tmp_path):
    corpus.write(tmp_path / "text.txt")
    environ = {
        "BERT_JAX_CACHE": str(tmp_path / "cache%"),  # hosts share the bucket alone
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with bucket.running() as found:
        there, environ = Bucket(found), {**found, **environ}

        def command(name: str, *more: str) -> str:
            ran = subprocess.run(
                [sys.executable, "-m", "bert_jax", name, *more],
                env={
                    **os.environ,
                    **environ,
                    "BERT_JAX_CACHE": str(tmp_path / "cache"),
                },
                cwd=group.ROOT,
                stdout=subprocess.PIPE,
                check=True,
                timeout=group.LIMIT,
                text=True,
            )
            return ran.stdout.splitlines()[-1]

        def group_of(name: str, run: str, count: int, devices: int) -> Group:
            settings = [*flags(tmp_path), *([f"--workdir={run}"] if run else [])]
            return Group(tmp_path / name, settings, count, devices, environ=environ)

        command("prepare", *flags(tmp_path))
        assert "store/manifest.json" in there.names("store/")
        with group_of("unbroken", "", 1, 2) as unbroken:
            assert unbroken.statuses() == [0]
        assert "copied gs://bucket/store" in unbroken.text(0)
        wanted = group.outcome(unbroken.workdir)

        # Killed once with a checkpoint that is whole, which then loses a file.
        with group_of("one", "gs://bucket/one", 1, 2) as one:
            one.until("a checkpoint", lambda: there.steps("one")[1:])
            one.send(0, signal.SIGKILL)
            one.statuses()
        newest = max(there.steps("one"))
        before = sorted(there.steps("one"))[-2]
        there.delete(f"one/checkpoints/{newest}/params/_METADATA")
        with group_of("one", "gs://bucket/one", 1, 2) as one:
            assert one.statuses() == [0]
        assert f"checkpoints/{newest} is damaged and not used" in one.text(0)
        assert f"continuing gs://bucket/one from step {before}" in one.text(0)
        assert "copied" not in one.text(0), "the store was there"
        summary = json.loads(there.text("one/summary.json"))
        assert summary["params_digest"] == wanted["params"]
        losses = [
            (line["step"], line["loss"])
            for line in there.lines("one")
            if line["kind"] == "train"
        ]
        assert losses == wanted["losses"]
        assert "one/curves.png" in there.names("one/")
        scores = json.loads(command("evaluate", "--workdir=gs://bucket/one", "--json"))
        assert scores["step"] == 20
        assert scores["eval_mlm_loss"] == pytest.approx(wanted["evaluations"][-1][1])
        with group_of("one", "gs://bucket/one", 1, 2) as one:
            assert one.statuses() == [0]
        assert "was finished already" in one.text(0)

        # Two hosts; one is killed, both are started again.
        with group_of("two", "gs://bucket/two", 2, 1) as two:
            two.until("a checkpoint", lambda: there.steps("two"))
            two.send(1, signal.SIGKILL)
            two.statuses()
        first = max(there.steps("two"))
        with group_of("two", "gs://bucket/two", 2, 1) as two:
            assert two.statuses() == [0, 0]
        assert "continuing gs://bucket/two from step" in two.text(0)
        assert first < max(there.steps("two")) == 20
        assert {p.name for p in tmp_path.glob("cache?")} == {"cache0", "cache1"}
        again = [line["loss"] for line in there.lines("two") if line["kind"] == "train"]
        np.testing.assert_allclose(again, [loss for _, loss in losses], rtol=1e-5)
