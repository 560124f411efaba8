"""Live: text of both languages gives the same ids as transformers' BertTokenizer."""

import itertools
import lzma

import pytest

from bert_jax.config import Tokenizer
from bert_jax.data.tokenizer import load_tokenizer

pytestmark = pytest.mark.shared


def _lines(folder, count):
    """Non-empty lines, of each file in turn."""
    files = []
    for file in sorted(folder.glob("*.txt.xz")):
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            files.append(list(itertools.islice(filter(str.strip, lines), count)))
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*files))
    return list(itertools.islice(filter(None, mixed), count))


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("name", ["cased", "multilingual-cased", "uncased"])
def test_ids_equal_transformers(shared, tmp_path, language, name):
    from transformers import BertTokenizer

    texts = _lines(shared / f"text_{language}", 20_000)
    assert len(texts) == 20_000
    found = shared / "reference" / "vocab" / f"bert-base-{name}.txt"
    packed = found.with_suffix(".txt.xz")
    content = found.read_bytes() if found.exists() else lzma.open(packed).read()
    (tmp_path / "vocab.txt").write_bytes(content)
    lowercase = name == "uncased"
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=lowercase)
    assert theirs.do_lower_case is lowercase
    ours = load_tokenizer(tmp_path, Tokenizer(lowercase=lowercase))
    ids, offsets = ours.encode_batch(texts)
    wanted = theirs(texts, add_special_tokens=False, truncation=False)["input_ids"]
    for i, row in enumerate(wanted):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == row, texts[i]
