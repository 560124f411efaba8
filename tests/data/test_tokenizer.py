import functools
import json
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import config
from bert_jax.data.subword_models import SPECIAL, Subwords
from bert_jax.data.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from bert_jax.errors import UserError

KINDS = ("wordpiece", "bpe", "byte_bpe", "unigram")
TEXT = [
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "Pack my box with five dozen liquor jugs; the foxes jumped quickly.",
    "Caf\u00e9 na\u00efve \u4e2d\u6587 \ud55c\uad6d\uc5b4 words, "
    "unbelievable wording (again)!",
    "1234 numbers 5678 and symbols $ + = ~ are here as well.",
] * 9
VOCABULARY = [
    *SPECIAL,
    "the",
    "cat",
    "##s",
    "sat",
    "on",
    "mat",
    ".",
    "un",
    "##know",
    "[",
    "]",
]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def trained(kind):
    return train_tokenizer(config.Tokenizer(kind=kind), 411, TEXT)


def reference(tokenizer, texts):
    """Whole sentences through the `tokenizers` library, without our cache."""
    inner = tokenizer._backend._tokenizer
    plain = [" ".join(text.split()) for text in texts]
    return [e.ids for e in inner.encode_batch_fast(plain, add_special_tokens=False)]


def rows(encoded):
    ids, offsets = encoded
    assert ids.dtype == np.int32
    return [part.tolist() for part in np.split(ids, offsets[1:-1])]


ANY_TEXT = st.lists(
    st.text()
    | st.text(st.sampled_from("ab '\u2581[MASK].\u0301\u4e2d\u00c5\u0130\u200b\n\x1c"))
)


@settings(deadline=None, max_examples=150)
@given(texts=ANY_TEXT)
@pytest.mark.parametrize("family", ["wordpiece", "bpe", "byte_bpe"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_the_word_cache_changes_nothing(family, lowercase, texts):
    tokenizer = cached(family, lowercase)
    assert rows(tokenizer.encode_batch([*texts, "end"]))[:-1] == reference(
        tokenizer, texts
    )


_made = {}


def cached(family, lowercase):
    if (family, lowercase) not in _made:
        wanted = config.Tokenizer(kind=family, lowercase=lowercase)
        _made[family, lowercase] = train_tokenizer(wanted, 411, TEXT)
        assert _made[family, lowercase]._backend._cache is not None
    return _made[family, lowercase]


@pytest.mark.shared
@pytest.mark.parametrize("family", ["wordpiece", "bpe", "byte_bpe"])
@pytest.mark.parametrize(
    "name", ["text_en/nltk_us_speeches.txt.xz", "text_ko/python_docs_ko.txt.xz"]
)
def test_the_word_cache_changes_nothing_on_real_text(shared, family, name):
    with lzma.open(shared / name, "rt", encoding="utf-8") as file:
        texts = file.read(600_000).split("\n")
    tokenizer = train_tokenizer(config.Tokenizer(kind=family), 3001, texts[:1500])
    for part in (texts[:700], texts):  # words of the first call are known later
        assert rows(tokenizer.encode_batch(part)) == reference(tokenizer, part)


def test_a_byte_level_tokenizer_without_prefix_keeps_first_words_apart(tmp_path):
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=351, special_tokens=list(SPECIAL), show_progress=False
    )
    inner.train_from_iterator(TEXT, trainer)
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path, config.Tokenizer(kind="byte_bpe"))
    texts = ["the the", "quick", "the quick the"]
    assert rows(tokenizer.encode_batch(texts)) == reference(tokenizer, texts)
    assert tokenizer.encode("the the")[0] != tokenizer.encode("the the")[-1]


def test_a_trained_tokenizer_has_the_special_tokens_first(trained):
    vocabulary = trained.vocabulary()
    assert vocabulary[1:6] == (0, 1, 2, 3, 4)
    assert [trained.token(index) for index in range(5)] == list(SPECIAL)
    assert vocabulary.size <= 411
    assert vocabulary.continues.shape == (vocabulary.size,)
    assert not vocabulary.continues[:5].any()


def test_no_text_becomes_a_special_token_unless_asked(trained):
    text = "the [MASK] fox [SEP] [CLS][PAD]"
    assert not {0, 2, 3, 4} & set(trained.encode(text))
    special = trained.encode(text, special=True)
    assert [token for token in special if token in (0, 2, 3, 4)] == [4, 3, 2, 0]


def test_continues_marks_the_later_pieces_of_words(trained):
    continues = trained.vocabulary().continues
    ids = trained.encode("jumping liquorwords, foxes unbelievably")
    words = np.split(np.array(ids), np.flatnonzero(~continues[ids])[1:])
    found = [trained.decode(word.tolist()) for word in words]
    assert found == ["jumping", "liquorwords", ",", "foxes", "unbelievably"]


def test_decode_gives_the_text_back(trained):
    assert trained.decode([2, *trained.encode("The  quick fox"), 3]) == "the quick fox"


def test_saved_and_loaded_is_the_same(trained, kind, tmp_path):
    trained.save(tmp_path)
    loaded = load_tokenizer(tmp_path, config.Tokenizer(kind=kind))
    assert loaded.vocabulary().hash == trained.vocabulary().hash
    for ours, theirs in zip(
        trained.encode_batch(TEXT), loaded.encode_batch(TEXT), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = " ".join(TEXT[2].split())
    assert other.encode(text, add_special_tokens=False).ids == trained.encode(text)
    assert (tmp_path / "vocab.txt").exists() == (kind == "wordpiece")


def test_training_gives_the_same_tokenizer_in_another_process(trained, kind):
    script = (
        "import json, sys; from bert_jax import config;"
        "from bert_jax.data.tokenizer import train_tokenizer as train;"
        "made = train(config.Tokenizer(kind=sys.argv[1]), 411, json.load(sys.stdin));"
        "print(made.vocabulary().hash)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, kind],
        input=json.dumps(TEXT),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == trained.vocabulary().hash


def test_a_vocab_txt_keeps_its_ids(tmp_path):
    file = tmp_path / "vocab.txt"
    moved = ["[PAD]", "[unused0]", *VOCABULARY[1:]]
    file.write_text("".join(word + "\n" for word in moved))
    tokenizer = load_tokenizer(file, config.Tokenizer())
    vocabulary = tokenizer.vocabulary()
    assert vocabulary[:6] == (len(moved), 0, 2, 3, 4, 5)
    found = [tokenizer.token(index) for index in tokenizer.encode("The c\u00e1ts sat.")]
    assert found == ["the", "cat", "##s", "sat", "."]
    cased = load_tokenizer(file, config.Tokenizer(lowercase=False))
    assert cased.token(cased.encode("The")[0]) == "[UNK]"


@pytest.mark.parametrize(
    ("name", "content", "wanted", "message"),
    [
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\nthe\n", "wordpiece", r"\[SEP\] \[MASK\]"),
        ("vocab.txt", "[PAD]\n", "unigram", "config.tokenizer.kind=unigram"),
        ("tokenizer.json", "{", "bpe", "tokenizer.json"),
        ("tokenizer.json", '{"model": []}', "bpe", "tokenizer.json"),
        ("vocab.json", "{}", "byte_bpe", "merges.txt"),
        ("spiece.model", "junk", "unigram", "spiece.model"),
        ("tokenizer.model", "junk", "unigram", "tokenizer.model"),
        ("vocab.txt", "\udcff", "wordpiece", "vocab.txt"),
    ],
)
def test_an_unfit_file_is_named(tmp_path, name, content, wanted, message):
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path / name, config.Tokenizer(kind=wanted))
    with pytest.raises(UserError, match=r"config.tokenizer.path=.*no none"):
        load_tokenizer(tmp_path / "none", config.Tokenizer(kind=wanted))


def test_a_vocabulary_smaller_than_the_alphabet_is_refused():
    with pytest.raises(UserError, match="config.model.vocab_size=200.*261"):
        train_tokenizer(config.Tokenizer(kind="byte_bpe"), 200, TEXT)


SPACED = [
    "  Caf\u00e9\u3000na\u00efve \n 1234+ fox",
    "",
    " \t ",
    "\ud55c\uad6d\uc5b4  quick",
]


def test_spans_cover_the_text(trained):
    texts = [*SPACED, *TEXT[:4]]
    ids, offsets, spans = trained.encode_spans(texts)
    for found, wanted in zip((ids, offsets), trained.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert spans.shape == (len(ids), 2)
    for text, begin, end in zip(texts, offsets, offsets[1:], strict=False):
        own = spans[begin:end]
        assert (np.diff(own, axis=1) >= 0).all() and (np.diff(own[:, 0]) >= 0).all()
        covered = {i for a, b in own for i in range(a, b)}
        assert covered >= {i for i, char in enumerate(text) if not char.isspace()}
        assert not any(text[a].isspace() for a, b in own if b > a)


def test_spans_of_word_pieces(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = load_tokenizer(tmp_path, config.Tokenizer())
    ids, _, spans = tokenizer.encode_spans([" The  cats\tunknow."])
    assert [tokenizer.token(int(i)) for i in ids] == [
        "the",
        "cat",
        "##s",
        "un",
        "##know",
        ".",
    ]
    assert spans.tolist() == [[1, 4], [6, 9], [9, 10], [11, 13], [13, 17], [17, 18]]


PARTS = st.lists(
    st.lists(
        st.text(st.sampled_from("abTs '.[MASK]!\u0301\u4e2d\u3002\ud55c\u200b\n")),
        max_size=5,
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=50)
@given(texts=PARTS)
@pytest.mark.parametrize("family", [*KINDS, "byte_bpe without prefix"])
def test_parts_have_the_pieces_of_the_whole_text(family, texts):
    tokenizer = parted(family)
    check_parts(tokenizer, texts)
    if family != "unigram":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizer._backend, "_cache", None)
            check_parts(tokenizer, texts)


@functools.cache
def parted(family):
    if family == "unigram":
        return train_tokenizer(config.Tokenizer(kind=family), 411, TEXT)
    if family in KINDS:
        return cached(family, True)
    inner = tokenizers.Tokenizer.from_str(
        cached("byte_bpe", True)._backend._tokenizer.to_str()
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return TextTokenizer(Subwords(inner), "byte_bpe")


def check_parts(tokenizer, texts):
    ids, offsets = tokenizer.encode_parts(texts)
    assert len(offsets) == 1 + sum(map(len, texts)) and (np.diff(offsets) >= 0).all()
    ends = np.cumsum([0, *map(len, texts)])
    whole = tokenizer.encode_batch(["".join(parts) for parts in texts])
    assert rows((ids, offsets[ends])) == rows(whole)
    for parts, begin in zip(texts, ends, strict=False):
        for i in range(1, len(parts)):
            # Where a space parts two parts, each has the tokens of its own words.
            before = "".join(parts[:i])
            if before[-1:].isspace() or "".join(parts[i:])[:1].isspace():
                size = len(tokenizer.encode(before))
                assert offsets[begin + i] - offsets[begin] == size


def test_a_full_disk_leaves_the_tokenizer_that_was_there(tmp_path, monkeypatch):
    found = train_tokenizer(config.Tokenizer(), 60, ["a few words of text"] * 9)
    found.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(folder):
        (folder / "tokenizer.json").write_text("{")
        raise Exception("No space left on device (os error 28)")  # as tokenizers does

    monkeypatch.setattr(found._backend, "save", full)
    with pytest.raises(UserError, match="cannot be written.*make room"):
        found.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


HANGUL = "오늘은 좋은 영화를 보았다. 배우들의 연기가 훌륭했다."


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("family", ["wordpiece", "bpe", "unigram"])
def test_hangul_keeps_its_syllables(family, lowercase):
    texts = [HANGUL, "Ein schönes Wort, İstanbul; が"] * 20
    made = train_tokenizer(
        config.Tokenizer(kind=family, lowercase=lowercase), 300, texts
    )
    pieces = [made.token(i) for i in range(made.vocabulary().size)]
    assert not any("\u1100" <= c <= "\u11ff" for piece in pieces for c in piece)
    assert any("\uac00" <= c <= "\ud7a3" for piece in pieces for c in piece)
    assert made.vocabulary().unk not in made.encode(HANGUL)
    if lowercase and family != "unigram":
        assert made.encode("SCHÖNES") == made.encode("schones")
        assert made.encode("が") != made.encode("か")


@pytest.mark.parametrize("family", ["wordpiece", "bpe"])
def test_the_alphabet_covers_the_text_and_the_vocabulary_is_filled(family):
    rng = np.random.default_rng(3)
    letters = [chr(0x4E00 + i) for i in range(600)]
    share = 1 / np.arange(1, 601)
    drawn = rng.choice(600, 40_000, p=share / share.sum())
    text = "".join(letters[i] for i in drawn)
    texts = [text[i : i + 50] + "。" for i in range(0, 40_000, 50)]
    made = train_tokenizer(config.Tokenizer(kind=family), 1_000, texts)
    ids, _ = made.encode_batch(texts)
    assert (ids == made.vocabulary().unk).mean() < 0.0005
    small = train_tokenizer(config.Tokenizer(kind=family), 400, texts)
    assert small.vocabulary().size <= 400


MASKED = ["The [MASK] jumps.", "un[MASK]able", "[MASK]", "fox [MASK], dog", "a[MASK] b"]


@pytest.mark.parametrize("family", [*KINDS, "byte_bpe without prefix"])
def test_a_mask_is_read_as_the_library_reads_it(family, tmp_path):
    parted(family).save(tmp_path)
    kind = "byte_bpe" if family not in KINDS else family
    loaded = load_tokenizer(tmp_path, config.Tokenizer(kind=kind))
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in MASKED:
        wanted = other.encode(text, add_special_tokens=False).ids
        assert loaded.encode(text, special=True) == wanted
        assert loaded.encode(text).count(loaded.vocabulary().mask) == 0
