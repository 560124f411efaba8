import json
import lzma
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.tagged import Sentence, check_scheme, sentences
from bert_jax.errors import UserError

CHARACTERS = st.characters(
    exclude_categories=["Cs"], exclude_characters="\t\n\r \ufeff\0"
)
WORD = st.text(CHARACTERS, min_size=1).filter(
    lambda word: not word.startswith(("#", "-DOCSTART-"))
)
TAGS = ["O", "B-PER", "I-PER", "E-LOC", "S-LOC"]
TAG = st.sampled_from(TAGS)
WORDS = st.lists(st.tuples(st.one_of(WORD, st.just("#")), TAG), min_size=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tagged")


def put(folder, content, name="a.conll"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def pairs(found):
    return [list(zip(sentence.words, sentence.tags, strict=True)) for sentence in found]


def join(expected, delimiter, end="\n"):
    return f"{end}{end}".join(
        end.join(delimiter.join(pair) for pair in sentence) for sentence in expected
    )


@given(
    expected=st.lists(WORDS, min_size=1, max_size=5),
    delimiter=st.sampled_from(["\t", " ", "  "]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_lines_come_back(folder, expected, delimiter, end):
    # A tag that only "#" has is no proof that this is a word.
    expected = [[("seen", tag) for tag in TAGS], *expected]
    path = put(folder, join(expected, delimiter, end))
    assert pairs(sentences(path)) == expected


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_json_objects_come_back(folder, expected):
    records = (
        {"tokens": [word for word, _ in one], "ner_tags": [tag for _, tag in one]}
        for one in expected
    )
    content = "\n".join(map(json.dumps, records))
    assert pairs(sentences(put(folder, content, "a.jsonl"))) == expected


def test_blank_lines_documents_and_where(tmp_path):
    content = (
        "\n-DOCSTART- -X- O O\n\n\nEU NNP I-NP B-ORG\nsaid VB I-VP O\n\n \nSo RB O O"
    )
    path = put(tmp_path, content)
    assert sentences(path) == [
        Sentence(["EU", "said"], ["B-ORG", "O"], f"{path}:5"),
        Sentence(["So"], ["O"], f"{path}:9"),
    ]
    chunked = sentences(path, tag_column=2)
    assert chunked[0].tags == ["I-NP", "I-VP"]
    assert sentences(path, "1", "3")[0].words == ["NNP", "VB"]


@pytest.mark.parametrize(
    ("comment", "delimiter"),
    [
        ("# text = Nothing is here", None),
        ("# newdoc", None),
        ("## newdoc", "\t"),
        ("##id-1\tA whole <sentence:OG>", "\t"),
        ("## columns : WORD\tTAG", "\t"),
        ("#", None),
        ("#\thttp://de.example.org/seite [2009-10-17]", None),  # GermEval 2014
        ("#\thttp://de.example.org/seite [2009-10-17]", "\t"),
        ("#begin document (nw/wsj/00); part 000", None),  # CoNLL-2012
        ("#end document", None),
    ],
)
def test_comments_are_left_out(tmp_path, comment, delimiter):
    content = f"{comment}\n{comment}\n\n{comment}\na\tB-X\n{comment}\n#\tO\nb\tO\n"
    path = put(tmp_path, content)
    assert sentences(path, delimiter=delimiter) == [
        Sentence(["a", "#", "b"], ["B-X", "O", "O"], f"{path}:5")
    ]


@pytest.mark.parametrize("word", ["#", "##", "#1", "#tag"])
@pytest.mark.parametrize("delimiter", [" ", "\t"])
def test_words_that_begin_with_a_hash_are_words(tmp_path, word, delimiter):
    path = put(
        tmp_path,
        f"{word}{delimiter}O\n{word}{delimiter}B-X\na{delimiter}O\nb{delimiter}B-X\n",
    )
    assert sentences(path)[0].words == [word, word, "a", "b"]
    path = put(tmp_path, "#a\tB-X\n#\tO\n")
    assert sentences(path)[0].words == ["#a", "#"]


def test_a_hash_is_the_first_word_of_a_sentence(tmp_path):
    content = "#\tO\nAnna\tB-X\n\n#\tB-X\n#begin\tO\n\n# \tO\nso\tO\n"
    path = put(tmp_path, content)
    assert [one.words for one in sentences(path, delimiter="\t")] == [
        ["#", "Anna"],
        ["#", "#begin"],
        ["# ", "so"],
    ]
    # In a file of words alone too, which is to be predicted.
    path = put(tmp_path, "#\nAnna\n# newdoc id = 1\n#end\n")
    assert sentences(path, 0, None)[0].words == ["#", "Anna", "#end"]


@pytest.mark.parametrize(
    "start",
    ["-DOCSTART-", "-DOCSTART- (6794356)", "-DOCSTART- NN O O O", "-DOCSTART-\tO"],
)
@pytest.mark.parametrize("blank", ["\n", "", " \t\n", "\u00a0\n", "\u3000\n"])
def test_documents_end_sentences_whatever_their_columns(tmp_path, start, blank):
    content = f"{start}\n{blank}a NN B-X\nb NN O\n{start}\n{blank}c NN O\n{blank}"
    found = sentences(put(tmp_path, content))
    assert [one.words for one in found] == [["a", "b"], ["c"]]


def test_a_tab_keeps_words_that_are_spaces(tmp_path):
    path = put(tmp_path, "a\tB-X\n \tO\n\u3000\tO\nb c\tO\n")
    assert sentences(path, delimiter="\t")[0].words == ["a", " ", "\u3000", "b c"]
    with pytest.raises(UserError, match=r"a\.conll:2: 1 column.*line 1 has 2.*tab"):
        sentences(path)


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("a O\nb\n", {}, r"a\.conll:2: 1 column\(s\), but line 1 has 2; give"),
        ("a O\n\nb c O\n", {}, r"a\.conll:3: 3 column.*line 1 has 2"),
        ("a O\n#tag\n", {}, r"a\.conll:2: 1 column"),
        ("a\nb\n", {}, r"a\.conll:1: words and tags .* of 1 column"),
        ("a O\n", {"delimiter": "\t"}, r"a\.conll:1: words and .*delimiter.*'\\t'"),
        ("a\tO\nb\t\n", {"delimiter": "\t"}, r"a\.conll:2: .*its tag is empty"),
        ("a\tO\n\tO\n", {"delimiter": "\t"}, r"a\.conll:2: the word or its tag"),
        ("a O\n", {"tag_column": 2}, r"a\.conll:1: no column 2; .* 0 to 1, .*-2"),
        ("a O\n", {"word_column": "word"}, r"a\.conll:1: no column word"),
        ("", {}, r"a\.conll: no sentences"),
        ("# only\n\n", {}, r"a\.conll: no sentences.*at least one"),
        ("a O\nb O\rc O\n", {}, r"a\.conll:2: a carriage return.*tr"),
        ("a O\rb O\r", {}, r"a\.conll:1: lines end with carriage returns"),
        (b"a O\n\xff O\n", {}, r"a\.conll:2: not valid utf-8"),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path, content, settings, message):
    with pytest.raises(UserError, match=message):
        sentences(put(tmp_path, content), **settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"words": ["a"], "ner": ["O"]}\n{"words": ["a"]}', ":2: no key 'ner' or"),
        ('{"words": ["a"], "ner": ["O", "O"]}', ":1: 1 words but 2 tags"),
        ('{"words": ["a"], "ner": [0]}', ":1: key 'ner' does not hold.*by name"),
        ('{"words": "a", "ner": ["O"]}', ":1: key 'words' does not hold"),
        ('{"words": [], "ner": []}', "a.json: no sentences"),
    ],
)
def test_mistakes_in_json_are_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        sentences(put(tmp_path, content, "a.json"))


def test_the_keys_of_json_can_be_named(tmp_path):
    path = put(tmp_path, '{"w": ["a"], "tags": ["O"], "pos": ["DT"]}', "a.json")
    assert sentences(path, "w", "pos") == [(["a"], ["DT"], f"{path}:1")]
    assert sentences(path, "w")[0].tags == ["O"]
    with pytest.raises(UserError, match=r"json:1: no key 'x'; name one of 'w', 'tags'"):
        sentences(path, "x")


def test_schemes_that_mark_spans_pass(tmp_path):
    tags = ["O", "B-PER", "I-PER", "E-PER", "S-work-of art", "I", "B"]
    tags += ["U-PER", "L-PER", "M-PER", "U", "L"]  # BILOU, BMES
    check_scheme([Sentence(["x"] * len(tags), tags, "a:1")])


@pytest.mark.parametrize("tag", ["NN", "X-PER", "B-", "BPER", "-PER", "o", "b-PER"])
def test_a_tag_of_no_scheme_is_named(tmp_path, tag):
    path = put(tmp_path, f"so O\n\na O\nb\t{tag}\n")
    with pytest.raises(
        UserError, match=rf"a\.conll:3, word 2 of.*\('b'\): tag '{tag}'"
    ):
        check_scheme(sentences(path))


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("PER-B", "'PER-B' to 'B-PER'"),
        ("PER_B", "'PER_B' to 'B-PER'"),
        ("work_of_art_I", "'work_of_art_I' to 'I-work_of_art'"),
        ("B_PER", "'B_PER' to 'B-PER'"),
        ("b-per", "'b-per' to 'B-per'"),
        ("-", "'-' to 'O'"),
        ("o", "'o' to 'O'"),
        ("3", "names in place of numbers"),
        ("NN", "such as B-PER"),
    ],
)
def test_a_tag_is_named_with_the_form_that_it_should_have(tmp_path, tag, words):
    path = put(tmp_path, f"so O\n\na O\nb\t{tag}\n")
    with pytest.raises(UserError, match=r"a\.conll:3, word 2.*to BIO") as told:
        check_scheme(sentences(path))
    assert words in str(told.value)


def test_integer_tags_and_empty_tags_of_json_are_named(tmp_path):
    for value, wrong in (("3", "a int, not text"), ('""', "an empty text")):
        content = f'{{"tokens": ["a", "b"], "ner_tags": ["O", {value}]}}'
        path = put(tmp_path, content, "a.json")
        with pytest.raises(UserError, match=f"json:1: .*number 2 is {wrong}.*by name"):
            sentences(path)


# Counted with grep; the tags must agree exactly.
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count", "words", "special"),
    [
        ("NER/wnut17_train.conll.xz", 3394, 62730, {"#": 2}),
        ("NER/wnut17_dev.conll", 1009, 15733, {"#": 22}),
        ("NER/wnut17_test.conll", 1287, 23394, {"#": 247}),
        ("NER/gum_train.conll.xz", 2495, 44111, {"#": 2}),
        ("NER/gum_test.conll", 1000, 18236, {"#": 1}),
        ("KLUE-NER/klue-ner-v1.1_dev.tsv.xz", 5000, 285929, {"#": 1, " ": 60379}),
    ],
)
def test_real_sets_are_read_whole(shared, name, count, words, special):
    path = shared / "finetune" / name
    found = sentences(str(path), delimiter="\t")
    check_scheme(found)
    assert len(found) == count
    assert sum(len(sentence.words) for sentence in found) == words
    content = path.read_bytes()
    raw = (lzma.decompress(content) if path.suffix == ".xz" else content).decode()
    lines = [line for line in raw.split("\n") if line and line[:2] != "##"]
    tags = Counter(tag for sentence in found for tag in sentence.tags)
    assert tags == Counter(line.split("\t")[1] for line in lines)
    seen = Counter(word for sentence in found for word in sentence.words)
    assert {word: seen[word] for word in special} == special


@pytest.mark.shared
def test_white_space_and_tabs_agree_on_tweets(shared):
    path = str(shared / "finetune/NER/wnut17_dev.conll")
    assert sentences(path) == sentences(path, delimiter="\t")
    assert sum(sentence.words.count("#") for sentence in sentences(path)) > 0


@pytest.mark.shared
def test_the_json_sample_is_read(shared):
    path = str(shared / "finetune/hf_fixtures/conll_sample.json")
    found = sentences(path)
    check_scheme(found)
    assert len(found) == 10
    assert found[0].words[8:10] == ["Angels", "this"]
    assert found[0].tags[8:10] == ["B-ORG", "O"]
