"""From raw text to a token store, on many processes, unharmed by being killed.

Everything is written below `DIRECTORY.partial`: blocks of about 4 MB of text become
part files named by a hash of all that they depend on, so that a rerun takes those
that are there. When all are, they are joined and the result is renamed into place.
"""

import codecs
import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from bert_jax import remote
from bert_jax.config import Config, Data
from bert_jax.data import corpus
from bert_jax.data.blocks import Part, encode_blocks
from bert_jax.data.store import FORMAT, open_store, read_manifest
from bert_jax.data.tokenizer import (
    TextTokenizer,
    Vocabulary,
    load_tokenizer,
    train_tokenizer,
)
from bert_jax.errors import UserError

# Of a recipe: what says which text it is.
_TEXT = {"source", "kinds", "files", "file_bytes", "stamps", "content"}
Progress = Callable[[str], None]
_LARGE = 1_000_000_000  # [bytes] of text that take seconds to read
_WAIT = 0.5  # [s] between two looks at another process's lock


def prepare_store(
    config: Config,
    directory: str | Path,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> dict:
    """Makes the token store of a config, or finds it made already.

    Args:
      config: `data`, `tokenizer` and `model.vocab_size` are read.
      directory: where the store shall be; may be in a bucket.
      num_workers: [processes] 0 is one for each core, 1 works in this process. The
        arrays do not depend on it.
      progress: is told, now and then, in a few words, how far the work is.

    Returns:
      The manifest, with `already_prepared` added: True where nothing was done.

    Raises:
      UserError: unreadable text, a tokenizer that does not fit, a directory that
        cannot be written or holds a store of something else.
    """
    tell = progress or (lambda text: None)
    if remote.is_remote(directory):
        return _prepare_remote(config, str(directory), num_workers, tell)
    directory = Path(directory)
    made_from = recipe(config)
    partial = directory.with_name(directory.name + ".partial")
    if directory.exists():
        manifest = _existing(config, directory, made_from)
        return {**manifest, "already_prepared": True}
    if made_from["file_bytes"] > _LARGE:
        tell(f"reading {made_from['file_bytes'] / 1e6:,.0f} MB for a fingerprint")
    made_from["content"] = _content(config.data)
    workers = num_workers or len(os.sched_getaffinity(0))
    with _partial(partial, made_from, tell):
        ready = directory.exists()  # by another process, which this one waited for
        if ready:
            manifest = _existing(config, directory, made_from)
        else:
            manifest = _build(config, partial, made_from, workers, tell)
            _finish(partial, directory)
        shutil.rmtree(partial, ignore_errors=True)
    return {**manifest, "already_prepared": ready}


def _finish(partial: Path, directory: Path) -> None:
    try:
        os.rename(partial / "store", directory)
    except OSError as error:
        raise UserError(f"{directory}: cannot be made ({error.strerror})") from None


def _prepare_remote(config: Config, url: str, workers: int, tell: Progress) -> dict:
    if remote.exists(url, remote.MANIFEST):
        return prepare_store(config, remote.fetch(url, tell), workers, tell)
    made = remote.staging(url)
    made.parent.mkdir(parents=True, exist_ok=True)
    manifest = prepare_store(config, made, workers, tell)
    remote.upload(made, url, tell)
    return manifest


def _build(
    config: Config, partial: Path, made_from: dict, workers: int, tell: Progress
) -> dict:
    start = time.perf_counter()
    tokenizer = _tokenizer(config, partial, tell)
    vocabulary = tokenizer.vocabulary()
    dtype = _dtype(config, vocabulary)
    trained = time.perf_counter()
    skipped: Counter[str] = Counter()
    documents = corpus.documents(config.data, skipped)
    parts, text_bytes = [], 0
    for part in encode_blocks(documents, partial, config, dtype, workers):
        parts.append(part)
        text_bytes += part.text_bytes
        speed = text_bytes / (time.perf_counter() - trained) / 1e6
        tell(f"{text_bytes / 1e6:,.0f} MB of text encoded, {speed:.1f} MB/s")
    skipped["empty_documents"] += sum(part.empty for part in parts)
    manifest = {
        "format": FORMAT,
        "documents": sum(part.documents for part in parts),
        "sentences": sum(part.sentences for part in parts),
        "tokens": sum(part.tokens for part in parts),
        "unknown_tokens": sum(part.unknown for part in parts),
        "text_bytes": text_bytes,
        "skipped": dict(sorted((name, n) for name, n in skipped.items() if n)),
        "vocabulary": {
            name: value
            for name, value in vocabulary._asdict().items()
            if name != "continues"
        },
        "tokenizer": dataclasses.asdict(config.tokenizer),
        "dtype": dtype,
        "source": list(config.data.source),
        "made_from": made_from,
    }
    if not manifest["documents"]:
        raise UserError(
            f"config.data.source={','.join(config.data.source)}: its "
            f"{skipped['empty_documents']} documents hold no words"
        )
    tell("joining the parts")
    _join(parts, partial / "store", tokenizer, vocabulary, manifest)
    manifest["checksums"] = remote.checksums(partial / "store")
    manifest["seconds"] = {
        "tokenizer": round(trained - start, 3),
        "encoding": round(time.perf_counter() - trained, 3),
    }
    text = json.dumps(manifest, indent=2) + "\n"
    (partial / "store" / "manifest.json").write_text(text)
    return manifest


def recipe(config: Config) -> dict:
    """What a store is made from; two configs with the same may share it."""
    data = config.data
    files = corpus.files(data)
    stats = [os.stat(path) for path in files]
    stamps = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats]
    made: dict = {
        "source": list(data.source),
        "kinds": _kinds(data),
        "text_key": data.text_key,
        "language": data.language,
        "dtype": data.dtype,
        "files": len(files),
        "file_bytes": sum(stat.st_size for stat in stats),
        "stamps": xxhash.xxh3_64_hexdigest(json.dumps(stamps).encode()),
    }
    if codecs.lookup(data.encoding).name != "utf-8":  # older stores do not name it
        made["encoding"] = codecs.lookup(data.encoding).name
    if config.tokenizer.path:
        tokenizer = _load(config)
        made["vocabulary"] = tokenizer.vocabulary().hash
        made["tokenizer"] = {"kind": tokenizer.kind}
    else:
        made["vocab_size"] = config.model.vocab_size
        made["tokenizer"] = dataclasses.asdict(config.tokenizer)
    return made


def is_same_text(data: Data, found: dict, made: dict | None = None) -> bool:
    """Whether `data.source` holds the text that a store was made from.

    Sizes and times are compared first. Files are read only where times differ, as of
    a copy.

    Args:
      data: names the text.
      found: `made_from` of the store's manifest.
      made: from `recipe`; None makes as much of it as is needed.

    Raises:
      UserError: a source is missing.
    """
    if made is None:
        made = recipe(dataclasses.replace(Config(), data=data))
    if "content" not in found:  # an older store
        names = "source", "files", "file_bytes"
    else:
        names = "kinds", "files", "file_bytes"
    if any(found.get(name) != made[name] for name in names):
        return False
    if "content" not in found or found["stamps"] == made["stamps"]:
        return True
    return found["content"] == _content(data)


def _kinds(data: Data) -> list[str]:
    """The sources in order, neighbouring files and globs together as one ""."""
    named = ["" if corpus.is_files(source) else source for source in data.source]
    return [kind for kind, _ in itertools.groupby(named)]


def _content(data: Data) -> str:
    """Fingerprint of all files of `data.source`, in reading order."""
    digest = xxhash.xxh3_64()
    for path in corpus.files(data):
        digest.update(remote.checksum(Path(path)).encode())
    return digest.hexdigest()


def _described(made: dict) -> str:
    source = ",".join(made["source"])
    content = made.get("content", "")[:8]
    known = f", fingerprint {content}" if content else ""
    return f"{source} ({made['files']} files, {made['file_bytes']:,} bytes{known})"


def _existing(config: Config, directory: Path, made_from: dict) -> dict:
    if not (directory / "manifest.json").exists():
        raise UserError(
            f"{directory}: exists and is no token store; name another directory by "
            "--config.data.store or --workdir"
        )
    found = read_manifest(str(directory))["made_from"]
    if not is_same_text(config.data, found, made_from):
        raise UserError(
            f"{directory}: the token store there was made from other text: "
            f"{_described(found)} there, {_described(made_from)} now; choose another "
            "--config.data.store or --workdir, or delete it"
        )
    for name in made_from.keys() - _TEXT:
        if found.get(name) != made_from[name]:
            raise UserError(
                f"{directory}: the token store there was made from "
                f"{name}={found.get(name)}, this config has {name}={made_from[name]}; "
                "choose another --config.data.store or --workdir, or delete it"
            )
    return open_store(str(directory)).manifest


@contextlib.contextmanager
def _partial(partial: Path, made_from: dict, tell: Progress) -> Iterator[None]:
    """Holds DIRECTORY.partial for this process, emptied of other configs' work."""
    if (lock := _lock(partial)) is None:
        tell(f"another process is at work in {partial}; waiting")
        while (lock := _lock(partial)) is None:
            time.sleep(_WAIT)
    with lock:
        made = {n: v for n, v in made_from.items() if n not in ("source", "stamps")}
        identity = json.dumps(made, sort_keys=True)
        file = partial / "made_from.json"
        if not file.exists() or file.read_text() != identity:
            for path in partial.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            file.write_text(identity)
        try:
            yield
        except OSError as error:
            raise UserError(f"{partial}: {error}; run again to continue") from error


def _lock(partial: Path) -> IO[str] | None:
    """The lock of a folder, which is made; None while another process has it."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = open(partial / "lock", "w")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_nlink:  # else it went with the folder
                return lock
    except FileNotFoundError:  # removed between two lines
        return None
    except OSError as error:
        raise UserError(
            f"{partial}: cannot be written ({error.strerror}); choose another "
            "--config.data.store or --workdir"
        ) from None
    lock.close()
    return None


def _tokenizer(config: Config, partial: Path, tell: Progress) -> TextTokenizer:
    ready, fresh = partial / "tokenizer", partial / "tokenizer.new"
    if not ready.exists():
        if config.tokenizer.path:
            tokenizer = _load(config)
        else:
            tell("reading text to train a tokenizer")
            texts = _Sample(config)
            tell("training the tokenizer")
            size = config.model.vocab_size
            tokenizer = train_tokenizer(config.tokenizer, size, texts)
        shutil.rmtree(fresh, ignore_errors=True)
        tokenizer.save(fresh)
        os.rename(fresh, ready)
    return load_tokenizer(ready, config.tokenizer)


def _load(config: Config) -> TextTokenizer:
    tokenizer = load_tokenizer(config.tokenizer.path, config.tokenizer)
    size = tokenizer.vocabulary().size
    if size > config.model.vocab_size:
        raise UserError(
            f"config.model.vocab_size={config.model.vocab_size}: smaller than the "
            f"{size} tokens of config.tokenizer.path={config.tokenizer.path}; set "
            f"--config.model.vocab_size={size}"
        )
    return tokenizer


class _Sample:
    """Lines of documents drawn by their hash, evenly from the whole corpus.

    The bar is lowered each time when more than `train_bytes` have been drawn, so
    one pass is enough, whatever the corpus's size. The lines are held as UTF-8.
    """

    def __init__(self, config: Config) -> None:
        limit = config.tokenizer.train_bytes
        bar, content = 2**64, bytearray()
        draws, sizes = array("Q"), array("q")  # of each document
        for document in corpus.documents(config.data):
            added = "\n".join(document).encode()
            draw = xxhash.xxh3_64_intdigest(added, seed=1)
            if draw < bar:
                draws.append(draw)
                sizes.append(len(added))
                content += added
            while len(content) > limit and len(sizes) > 1:
                bar //= 2
                kept = np.array(draws) < bar
                kept[0] |= not kept.any()
                draws = array("Q", np.array(draws)[kept].tobytes())
                content = bytearray(
                    np.frombuffer(content, np.uint8)[np.repeat(kept, sizes)].tobytes()
                )
                sizes = array("q", np.array(sizes)[kept].tobytes())
        self._content, self._sizes = content, sizes

    def __iter__(self) -> Iterator[str]:
        start = 0
        for size in self._sizes:
            yield from self._content[start : start + size].decode().split("\n")
            start += size


def _dtype(config: Config, vocabulary: Vocabulary) -> str:
    small = vocabulary.size <= 1 << 16
    if config.data.dtype == "uint16" and not small:
        raise UserError(
            f"config.data.dtype=uint16: holds 65,536 ids, the vocabulary has "
            f"{vocabulary.size:,}; set --config.data.dtype=auto"
        )
    if config.data.dtype == "auto":
        return "uint16" if small else "uint32"
    return config.data.dtype


def _join(
    parts: list[Part],
    store: Path,
    tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    manifest: dict,
) -> None:
    """Writes all parts one after the other; never holds more than one."""
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    tokenizer.save(store)
    np.save(store / "continues.npy", vocabulary.continues)
    sizes = {
        "sentences": ("<i8", manifest["sentences"] + 1),
        "documents": ("<i8", manifest["documents"] + 1),
        "hashes": ("<u8", manifest["documents"]),
    }
    with contextlib.ExitStack() as stack:
        tokens = stack.enter_context(open(store / "tokens.bin", "wb"))
        files = {}
        for name, (dtype, size) in sizes.items():
            files[name] = stack.enter_context(open(store / f"{name}.npy", "wb"))
            header = {"descr": dtype, "fortran_order": False, "shape": (size,)}
            np.lib.format.write_array_header_1_0(files[name], header)
        token, sentence = 0, 0
        np.zeros(1, np.int64).tofile(files["sentences"])
        np.zeros(1, np.int64).tofile(files["documents"])
        for part in parts:
            with np.load(part.path) as arrays:
                arrays["tokens"].tofile(tokens)
                (token + arrays["sentences"]).tofile(files["sentences"])
                (sentence + arrays["documents"]).tofile(files["documents"])
                arrays["hashes"].tofile(files["hashes"])
            token, sentence = token + part.tokens, sentence + part.sentences
