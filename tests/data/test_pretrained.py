"""Tokenizers in directories of transformers give the ids that transformers gives."""

import itertools
import json
import unicodedata

import pytest
import tokenizers

from bert_jax import config
from bert_jax.data import coverage, pretrained
from bert_jax.data.tokenizer import kind_of, load_tokenizer
from bert_jax.errors import UserError
from tests.interop import hugging

TEXTS = [
    "Müssen wir schön sein? Ŝi ĉiam Ñandú İstanbul ß",
    "한국어 문장이다. 참 좋다",
    "漢字と Kanji 混在 中文字 が",
    "नमस्ते हिन्दी",
    "emoji 😀👍🏽 ok",
    "hello covid [E1] world COVID don't--now…",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = {letter for text in TEXTS for letter in text if not letter.isspace()}
LETTERS |= {
    c
    for letter in LETTERS
    for form in ("NFD", "NFKD")
    for c in unicodedata.normalize(form, letter + letter.lower()) + letter.lower()
}
VOCABULARY = [*SPECIAL, *sorted(LETTERS), *(f"##{c}" for c in sorted(LETTERS)), "world"]
SIZE = len(VOCABULARY)


def directory(place, options, added, content):
    """A directory with a vocab.txt and what else is asked for."""
    (place / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    (place / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    if content is not None:
        ids = {token: index for index, token in enumerate(VOCABULARY)}
        model = tokenizers.models.WordPiece(ids, unk_token="[UNK]")
        inner = tokenizers.Tokenizer(model)
        inner.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=content)
        inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        inner.add_special_tokens(SPECIAL)
        if added == "tokenizer.json":
            inner.add_tokens(["covid"])
            inner.add_special_tokens(["[E1]"])
        inner.save(str(place / "tokenizer.json"))
    if added == "added_tokens.json":
        found = {"[E1]": SIZE, "covid": SIZE + 1}
        (place / "added_tokens.json").write_text(json.dumps(found))
    if added == "tokenizer_config.json":
        options["added_tokens_decoder"] = {
            str(SIZE): {"content": "[E1]", "special": True, "normalized": False},
            str(SIZE + 1): {"content": "covid", "special": False, "normalized": True},
        }
    (place / "tokenizer_config.json").write_text(json.dumps(options))
    return place


FLAGS = itertools.product([True, False], [None, True, False], [True, False])
FILES = itertools.product(
    ["", "added_tokens.json", "tokenizer_config.json", "tokenizer.json"],
    [None, True, False],
    ["", "BertTokenizer", "PreTrainedTokenizerFast"],
)
# Each combination of flags with some of the files, and each of the files with some
# of the flags.
CASES = [
    (flags, files)
    for i, (flags, files) in enumerate(itertools.product(list(FLAGS), list(FILES)))
    if i % 11 == 0 and (files[1] is not None or files[0] != "tokenizer.json")
]


@pytest.mark.parametrize(("flags", "files"), CASES)
def test_ids_are_those_of_transformers(tmp_path, flags, files):
    from transformers import AutoTokenizer

    (lower, strip, chinese), (added, content, named) = flags, files
    options = {
        "do_lower_case": lower,
        "strip_accents": strip,
        "tokenize_chinese_chars": chinese,
    }
    if named:
        options["tokenizer_class"] = named
    made = directory(tmp_path, options, added, content)
    settings = config.Tokenizer(kind=kind_of(made))
    if content is None and named == "PreTrainedTokenizerFast":
        with pytest.raises(UserError, match="no tokenizer.json"):
            load_tokenizer(made, settings)
        return
    theirs = AutoTokenizer.from_pretrained(made)
    ours = load_tokenizer(made, settings)
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved", settings)
    for text in TEXTS:
        wanted = theirs(" ".join(text.split()), add_special_tokens=False).input_ids
        assert ours.encode(text) == wanted
        assert again.encode(text) == wanted


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("Roberta", ("add_prefix_space", "trim_offsets")),
        ("Albert", ("do_lower_case", "keep_accents", "remove_space")),
    ],
)
def test_other_families_give_the_ids_of_transformers(tmp_path, family, names):
    from transformers import AutoTokenizer

    hugging.write_tokenizer(tmp_path, family, 400)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family.lower()}))
    texts = [*hugging.TEXT[:3], *TEXTS]
    for values in itertools.product([None, True, False], repeat=len(names)):
        flags = zip(names, values, strict=True)
        options = {name: value for name, value in flags if value is not None}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        ours = load_tokenizer(tmp_path, config.Tokenizer(kind=kind_of(tmp_path)))
        for text in texts:
            wanted = theirs(" ".join(text.split()), add_special_tokens=False).input_ids
            assert ours.encode(text) == wanted, options


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (["\u2581나는", "\u2581학교", "에", "\u2581간다"], "sentencepiece"),
        (["the\t12", "of\t11", "and\t10"], "a tab"),
        (["th@@", "an@@", "wh@@"], "BPE"),
    ],
)
def test_other_vocabularies_are_refused(tmp_path, pieces, message):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *pieces]), "utf-8")
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path, config.Tokenizer())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "MeCab"),
        ({"tokenizer_class": "KoBertTokenizer"}, "KoBertTokenizer is not known"),
        ({"do_lower_case": "false"}, "do_lower_case='false' is neither"),
        ({"cls_token": "<s>"}, r"cls_token='<s>', but the vocabulary has \[CLS\]"),
        ({"added_tokens_decoder": {"9999": {"content": "x"}}}, "the id 9999"),
        ({"added_tokens_decoder": {"a": 3}}, "cannot be read"),
    ],
)
def test_what_cannot_be_followed_is_said(tmp_path, options, message):
    made = directory(tmp_path, options, "", None)
    with pytest.raises(UserError, match=message):
        load_tokenizer(made, config.Tokenizer())


@pytest.mark.parametrize(
    ("name", "tokens", "uncased"),
    [
        ("chinese_L-12", [*SPECIAL, "<S>", "<T>", "的", "bert"], True),
        ("model", [*SPECIAL, "der", "Haus"], False),
        ("uncased_L-2", [*SPECIAL, "Haus"], True),
        ("cased_L-2", [*SPECIAL, "haus"], False),
    ],
)
def test_case_without_a_statement(tmp_path, name, tokens, uncased):
    value, why = pretrained.case_of(tmp_path / name, tokens)
    assert value is uncased and why


def test_unknown_tokens_are_counted_in_the_scripts_of_the_vocabulary(tmp_path):
    english = [*SPECIAL, *(f"word{i}" for i in range(99)), "的", "한"]
    assert coverage.scripts(english) == ["LATIN"]
    (tmp_path / "vocab.txt").write_text("\n".join(english), "utf-8")
    share, scripts = coverage.unknown(load_tokenizer(tmp_path, config.Tokenizer()))
    assert share > 0.5 and scripts == ["LATIN"]
