"""Sentences with a tag for each word, from files in the manner of CoNLL-2003.

One word a line with its columns, a blank line after each sentence (Tjong Kim Sang and
De Meulder, 2003, https://aclanthology.org/W03-0419/); or JSON objects with two lists.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bert_jax.data.objects import (
    holds_objects,
    keys_of,
    look_up,
    not_text,
    objects,
    text,
)
from bert_jax.errors import UserError

_COMMENT = re.compile(r"##|#\s|#$|#(begin|end)\s")
_TAG = re.compile(r"O|[BIESLUMW](-.+)?")
# Tags of other schemes, to name the one that is meant: PER-B, PER_B, B_PER, b-per.
_AFTER = re.compile(r"(.+)[-_/:]([BIESLUMW])", re.IGNORECASE)
_BEFORE = re.compile(r"([BIESLUMW])[-_/:](.+)", re.IGNORECASE)
_OUTSIDE = ("o", "0", "-", "_", "none", "null", "out", "outside", "other")
_SPACES = re.compile(r"[ \t]+")
_WORD_KEYS = ("words", "tokens")
_TAG_KEYS = ("ner", "tags", "ner_tags", "labels")


class Sentence(NamedTuple):
    """Words and as many tags."""

    words: list[str]
    tags: list[str]
    where: str  # file:line of the first word


class _Row(NamedTuple):
    line: int
    fields: list[str]
    raw: str


def sentences(
    path: str,
    word_column: int | str = 0,
    tag_column: int | str | None = -1,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    layout: list[str | None] | None = None,
) -> list[Sentence]:
    """Reads every sentence of a file of tagged words.

    `-DOCSTART-` lines and comments are left out. A line that begins with `##`, with `#`
    and white space, or with `#begin` or `#end`, is a comment unless it has as many
    columns as the others and a tag that other words have: in tweets `#` is a word too.

    Args:
      path: one word a line; or .json, .jsonl with lists of words and of tags in each
        object. Each also compressed. Or `tfds:NAME[/CONFIG]:SPLIT` of such objects.
      word_column: number of the words' column from 0, or from the end if negative; the
        key in JSON objects, where a number stands for one of `words tokens`.
      tag_column: the same of the tags; one of `ner tags ner_tags labels`. None: the
        tags do not matter and may be missing; they are what stands there.
      delimiter: the tab, which keeps a word that is a space; None: any white space.
      encoding: codec of a file without byte order mark.
      layout: is filled with the lines of a file of lines: None for a word, else the
        line itself.

    Returns:
      One or more sentences, in the order of the file; objects may have no words. Tags
      are as in the file, whatever their scheme.

    Raises:
      UserError: naming file and line, of whatever is wrong with the file.
    """
    if holds_objects(path):
        found = [
            _from_object(record, word_column, tag_column, where)
            for where, record in objects(path, encoding)
        ]
    else:
        rows = _rows(path, delimiter, encoding)
        lines: list[str | None] = [row.raw for row in rows]
        columns = word_column, tag_column
        found = list(_from_lines(path, rows, columns, delimiter, lines))
        if layout is not None:
            layout[:] = lines[:-1] if lines[-1] == "" else lines
    labelled = tag_column is not None
    if not found or labelled and not any(sentence.words for sentence in found):
        raise UserError(f"{path}: no sentences in it; give a file with at least one")
    return found


def check_scheme(sentences: Sequence[Sentence]) -> None:
    """Makes sure that every tag is of a scheme that marks spans.

    These are BIO, IOB1, BIOES, BILOU and BMES: `O`, or one of `B I E S L U M W`, alone
    or before a hyphen and a type. Parts of speech, for example, are not.

    Raises:
      UserError: naming file, line and word of the first tag that is not.
    """
    known: set[str] = set()
    for sentence in sentences:
        for number, tag in enumerate(sentence.tags):
            if tag in known:
                continue
            if not _TAG.fullmatch(tag):
                raise UserError(
                    f"{sentence.where}, word {number + 1} of the sentence "
                    f"({sentence.words[number]!r}): tag {tag!r} neither is O nor "
                    "begins with B-, I-, E-, S-, L- or U-; convert the tags to BIO, "
                    f"{_example(tag)}"
                )
            known.add(tag)


def _example(tag: str) -> str:
    """How a tag of another scheme is to be written."""
    if tag.isdecimal():
        return "names in place of numbers, such as O and B-PER"
    if tag.lower() in _OUTSIDE:
        return f"here {tag!r} to 'O'"
    if match := _AFTER.fullmatch(tag) or _BEFORE.fullmatch(tag):
        kind, place = match.groups() if match.re is _AFTER else match.groups()[::-1]
        return f"here {tag!r} to '{place.upper()}-{kind}'"
    return "such as B-PER for the first word of a person's name, O outside of names"


def _from_lines(
    path: str,
    rows: list[_Row],
    columns: tuple[int | str, int | str | None],
    delimiter: str | None,
    layout: list[str | None],
) -> Iterator[Sentence]:
    word_column, tag_column = columns
    certain = [row for row in rows if row.fields and not row.raw.startswith("#")]
    if not certain:
        certain = [row for row in rows if row.fields and not _COMMENT.match(row.raw)]
    if not certain:
        return
    first, remedy = certain[0], _remedy(delimiter)
    width, where = len(first.fields), f"{path}:{first.line}"
    column = -1 if tag_column is None else tag_column
    word, tag = (_place(c, width, where) for c in (word_column, column))
    if word == tag and tag_column is not None:
        raise UserError(
            f"{where}: words and tags would be the same of {width} column(s); {remedy}"
        )
    tags = {row.fields[tag] for row in certain if len(row.fields) == width}
    bare = tag_column is None and width == 1  # a "#" alone is a word there
    sentence = Sentence([], [], "")
    for row in rows:
        agrees = len(row.fields) == width
        if not row.fields:
            if sentence.words:
                yield sentence
            sentence = Sentence([], [], "")
        elif _COMMENT.match(row.raw) and not (
            agrees
            and (bare or row.fields[tag] in tags or _TAG.fullmatch(row.fields[tag]))
        ):
            continue
        elif not agrees:
            raise UserError(
                f"{path}:{row.line}: {len(row.fields)} column(s), but line "
                f"{first.line} has {width}; {remedy}"
                + ", or put a space after the # of a comment"
                * row.raw.startswith("#")
            )
        elif not (row.fields[word] and (row.fields[tag] or tag_column is None)):
            raise UserError(
                f"{path}:{row.line}: the word or its tag is empty; write both, or "
                "leave the line out"
            )
        else:
            if not sentence.words:
                sentence = sentence._replace(where=f"{path}:{row.line}")
            sentence.words.append(row.fields[word])
            sentence.tags.append(row.fields[tag])
            layout[row.line - 1] = None
    if sentence.words:
        yield sentence


def _rows(path: str, delimiter: str | None, encoding: str) -> list[_Row]:
    """The lines that matter; one that ends a sentence has no fields."""
    rows: list[_Row] = []
    for number, raw in enumerate(text(path, encoding).split("\n"), start=1):
        raw = raw.removesuffix("\r")
        if "\r" in raw:
            raise UserError(
                f"{path}:{number}: a carriage return inside the line; convert the line "
                "ends, for example with tr '\\r' '\\n'"
            )
        bare = raw.strip(" \t")
        if not raw.strip() or bare.startswith("-DOCSTART-"):
            fields: list[str] = []
        elif delimiter is None:  # not str.split: other spaces may be part of a word
            fields = _SPACES.split(bare)
        else:
            fields = raw.split(delimiter)
        rows.append(_Row(number, fields, raw))
    return rows


def _remedy(delimiter: str | None) -> str:
    if delimiter is None:
        return "give every word its tag; if words can be spaces, set the tab delimiter"
    return f"give every word its tag, or set the delimiter if it is not {delimiter!r}"


def _place(column: int | str, width: int, where: str) -> int:
    try:
        return range(width)[int(column)]
    except (ValueError, IndexError):
        raise UserError(
            f"{where}: no column {column}; give a number from 0 to {width - 1}, or "
            f"from -1 to -{width} for those from the end"
        ) from None


def _from_object(
    record: dict[str, Any],
    word_column: int | str,
    tag_column: int | str | None,
    where: str,
) -> Sentence:
    words = _list(record, word_column, _WORD_KEYS, where)
    if tag_column is None:
        return Sentence(words, words, where)
    tags = _list(record, tag_column, _TAG_KEYS, where)
    if len(words) != len(tags):
        raise UserError(
            f"{where}: {len(words)} words but {len(tags)} tags; give every word its tag"
        )
    return Sentence(words, tags, where)


def _list(
    record: dict[str, Any], column: int | str, usual: Sequence[str], where: str
) -> list[str]:
    keys = [column] if isinstance(column, str) else usual
    for key in keys:
        try:
            values = look_up(record, key)
            break
        except KeyError:
            continue
    else:
        raise UserError(
            f"{where}: no key {' or '.join(map(repr, keys))}; name one of "
            + ", ".join(map(repr, keys_of(record)))
        )
    if not isinstance(values, list):
        raise UserError(
            f"{where}: key {key!r} does not hold a list of texts, but a "
            f"{type(values).__name__}"
        )
    for number, value in enumerate(values, start=1):
        wrong = not_text(value)
        if wrong is None and not value and usual is _TAG_KEYS:
            wrong = "an empty text"
        if wrong:
            raise UserError(
                f"{where}: key {key!r} does not hold a list of texts: number {number} "
                f"is {wrong}; write words and tags by name, not by number"
            )
    return values
