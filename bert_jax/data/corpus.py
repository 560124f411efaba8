"""Raw documents, streamed from files, TensorFlow Datasets or this installation.

A document is a list of non-empty lines of text; a line is a sentence or a whole
paragraph. Nothing here holds more than one document and one read buffer, so that
memory does not depend on the size of a file.
"""

import glob
import itertools
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_jax.config import Data
from bert_jax.data import python_docs, tfds
from bert_jax.data.decompress import SUFFIXES, chunks
from bert_jax.data.long_texts import LONG, JsonText, Utf8Text, read_json
from bert_jax.data.text import lines, split_lines, utf8_lines
from bert_jax.errors import UserError

Document = list[str]
Text = str | JsonText | Utf8Text

_FORMATS = (".txt", ".jsonl", ".parquet")
_EXTRACTED = re.compile(r"wiki_\d+")  # WikiExtractor's files, which have no suffix
_DOCUMENT_TAG = re.compile(r"<doc id=.*>")  # begins each of their documents
_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_LIMIT = 1 << 16  # [characters] a longer line is cut, at the end of a sentence
_DOCUMENT_LIMIT = 1 << 22  # [characters] a longer document is cut between lines


def documents(data: Data, skipped: Counter[str] | None = None) -> Iterator[Document]:
    """Streams every document of `data.source`, in an order that never changes.

    Args:
      data: where the text is; `source`, `text_key` and `encoding` are read.
      skipped: counts what was left out or altered, by reason: `bad_utf8_lines`,
        `empty_documents`, `documents_cut`, `lines_outside_documents`. Pass one to
        report it.

    Yields:
      Documents: lists of lines, each valid Unicode with something besides spaces.

    Raises:
      UserError: a source is missing, damaged, of an unknown kind or in another
        encoding, a record lacks the text key, or there is no document at all.
    """
    skipped = Counter() if skipped is None else skipped
    found = False
    for source in data.source:
        for paragraphs in _source_documents(source, data, skipped):
            for document in _cut(paragraphs, skipped):
                found = True
                yield document
    if not found:
        why = ", ".join(f"{count} {name}" for name, count in skipped.items())
        raise UserError(
            f"config.data.source={','.join(data.source)}: no documents in it"
            + (f" (skipped: {why})" if why else "")
            + "; name text files with at least one line"
        )


def files(data: Data) -> list[str]:
    """The files that the globs of `data.source` stand for, in reading order."""
    globs = filter(is_files, data.source)
    return [path for pattern in globs for path in _matches(pattern)]


def is_files(source: str) -> bool:
    """Whether a source is a path or glob, not the name of a data set."""
    return source != "python-docs" and not tfds.is_named(source)


def _source_documents(
    source: str, data: Data, skipped: Counter[str]
) -> Iterator[Iterator[str]]:
    if source == "python-docs":
        for document in python_docs.documents():
            yield iter(document)
    elif tfds.is_named(source):
        source = tfds.with_split(source, "train")
        for record in tfds.stream(source):
            text = _text_of(record, data.text_key, source)
            yield _lines_of(text, skipped)
    else:
        for path in _matches(source):
            yield from _file_documents(path, data, skipped)


def _matches(pattern: str) -> list[str]:
    expanded = os.path.expanduser(pattern)
    found = [expanded]  # a real name may hold glob characters
    if not os.path.lexists(expanded):
        found = sorted(glob.glob(expanded, recursive=True))
    if not found:
        what = "matches no file" if glob.has_magic(pattern) else "no such file"
        raise UserError(
            f"config.data.source={pattern}: {what}; give a path or a quoted glob of "
            f"{' '.join(_FORMATS)} files, a directory of them, tfds:NAME or python-docs"
        )
    paths: list[str] = []
    for path in found:
        paths += _below(path) if os.path.isdir(path) else [path]
    for path in paths:
        if _format(path) is None:
            raise UserError(
                f"config.data.source={pattern}: {path} has an unknown suffix; "
                f"use {' '.join(_FORMATS)}, each also with {' '.join(SUFFIXES)}, or no "
                "suffix for plain text"
            )
        if not os.path.isfile(path):
            raise UserError(
                f"config.data.source={pattern}: {path} is a pipe or a device, and the "
                "text is read more than once; write it to a file first"
            )
    if not paths:
        raise UserError(
            f"config.data.source={pattern}: the directory holds no "
            f"{' '.join(_FORMATS)} file (also with {' '.join(SUFFIXES)})"
        )
    return paths


def _below(directory: str) -> list[str]:
    paths = (path for path in Path(directory).rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if _is_corpus_name(path.name))


def _is_corpus_name(name: str) -> bool:
    kind = _format(name)
    return bool(kind) or kind == "" and bool(_EXTRACTED.match(name))


def _format(path: str) -> str | None:
    """The suffix that names a format, "" if there is none, or None for an unknown."""
    name = os.path.basename(path)
    stem, suffix = os.path.splitext(name)
    if suffix in SUFFIXES:
        suffix = os.path.splitext(stem)[1]
    suffix = suffix.lower()
    return suffix if suffix in ("", *_FORMATS) else None


def _file_documents(
    path: str, data: Data, skipped: Counter[str]
) -> Iterator[Iterator[str]]:
    kind = _format(path)
    if kind == ".parquet":
        texts = _parquet_texts(path, data.text_key)
    elif kind == ".jsonl" or not kind and _holds_json(path):
        texts = _jsonl_texts(path, data, skipped)
    else:
        yield from _text_documents(path, data.encoding, skipped)
        return
    for text in texts:
        yield _lines_of(text, skipped)


def _holds_json(path: str) -> bool:
    """Whether a file without suffix holds the JSON objects of WikiExtractor."""
    return _EXTRACTED.match(os.path.basename(path)) is not None and (
        next(chunks(path), b"").lstrip()[:1] == b"{"
    )


def _text_documents(
    path: str, encoding: str, skipped: Counter[str]
) -> Iterator[Iterator[str]]:
    found = lines(path, encoding, skipped, _LINE_LIMIT)
    stripped = (line.strip() for line in found if line is not None)
    first = next(filter(None, stripped), "")
    tagged = _DOCUMENT_TAG.fullmatch(first)
    for line in itertools.chain([first], stripped):
        if not tagged and line:
            yield _until("", line, stripped)
        elif tagged and _DOCUMENT_TAG.fullmatch(line):
            yield filter(None, _until("</doc>", "", stripped))
        elif line:
            skipped["lines_outside_documents"] += 1


def _until(end: str, first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    for line in lines:
        if line == end:
            return
        yield line


def _lines_of(text: Text, skipped: Counter[str]) -> Iterator[str]:
    parts = [text] if isinstance(text, str) else text
    if any(
        map(_SURROGATE.search, parts)
    ):  # from an escape such as \ud800, or bad bytes
        skipped["bad_utf8_lines"] += 1
    elif all(not part or part.isspace() for part in parts):
        skipped["empty_documents"] += 1
    else:
        yield from filter(None, map(str.strip, split_lines(parts, _LINE_LIMIT)))


def _cut(lines: Iterator[str], skipped: Counter[str]) -> Iterator[Document]:
    document: Document = []
    size = 0
    for line in lines:
        if size > _DOCUMENT_LIMIT:
            skipped["documents_cut"] += 1
            yield document
            document, size = [], 0
        document.append(line)
        size += len(line)
    if document:
        yield document


def _jsonl_texts(path: str, data: Data, skipped: Counter[str]) -> Iterator[Text]:
    found = utf8_lines(path, data.encoding, skipped)
    for number, line in enumerate(found, start=1):
        if line and not line.isspace():
            where = f"{path}, line {number}"
            yield _text_of(read_json(line, where), data.text_key, where)


def _text_of(record: Any, text_key: str, where: str) -> Text:
    keys = list(record) if isinstance(record, dict) else []
    if text_key not in keys:
        has = f"keys {', '.join(keys)}" if keys else f"a {type(record).__name__}"
        raise UserError(
            f"{where}: no text under config.data.text_key={text_key!r}, it has {has}; "
            "set --config.data.text_key"
        )
    text = record[text_key]
    if isinstance(text, bytes):
        text = text.decode(errors="surrogateescape")
    if not isinstance(text, Text | None):
        raise UserError(
            f"{where}: config.data.text_key={text_key!r} holds a "
            f"{type(text).__name__}, not text; set --config.data.text_key"
        )
    return text or ""


def _parquet_texts(path: str, text_key: str) -> Iterator[Text]:
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryFile() as unpacked:  # Parquet is read from its end
        source: Any = path
        if path.endswith(SUFFIXES):
            unpacked.writelines(chunks(path))
            source = unpacked
        try:
            # Neither a row group nor many long records are held at once.
            table = pyarrow.parquet.ParquetFile(
                source, buffer_size=1 << 20, pre_buffer=False
            )
            columns = {name: None for name in table.schema_arrow.names}
            if text_key not in columns:
                _text_of(columns, text_key, path)
            groups = map(table.metadata.row_group, range(table.num_row_groups))
            mean = max(
                (g.total_byte_size // max(g.num_rows, 1) for g in groups), default=0
            )
            rows = min(64, LONG // max(mean, 1) + 1)
            for batch in table.iter_batches(rows, columns=[text_key]):
                column = batch.column(0)
                found = column.to_pylist() if column.nbytes <= LONG else column
                for text in found:
                    yield _text_of({text_key: _held(text)}, text_key, path)
        except UnicodeDecodeError:
            raise UserError(f"{path}: column {text_key!r} is not UTF-8 text") from None
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: damaged Parquet file ({error})") from None


def _held(text: Any) -> Any:
    """The value of a scalar of Arrow, a long text without a copy of it."""
    if hasattr(text, "as_buffer") and (content := text.as_buffer()):
        content = memoryview(content)
        return Utf8Text(content) if len(content) > LONG else text.as_py()
    return text.as_py() if hasattr(text, "as_py") else text
