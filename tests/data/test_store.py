import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bert_jax.config import Config
from bert_jax.config.presets import replace
from bert_jax.data.prepare import prepare_store
from bert_jax.data.store import open_store
from bert_jax.errors import UserError

TEXT = "The cat sat. It ran off.\nA dog.\n\nAnother document here.\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("store")
    (place / "a.txt").write_text(TEXT)
    config = replace(
        Config(), data={"source": (str(place / "a.txt"),)}, model={"vocab_size": 130}
    )
    prepare_store(config, place / "store", 1)
    return place / "store"


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_a_store_maps_its_arrays_read_only(made):
    store = open_store(str(made))
    assert store.documents.tolist() == [0, 3, 4]
    assert len(store.sentences) == 5
    assert store.sentences[-1] == len(store.tokens)
    assert store.hashes.dtype == np.uint64
    assert store.vocabulary.continues.shape == (store.vocabulary.size,)
    assert store.manifest["text_bytes"] == len(TEXT) - 3
    for array in (store.tokens, store.sentences, store.documents, store.hashes):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_no_store_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="no token store there.*prepare"):
        open_store(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "name",
    ["tokens.bin", "sentences.npy", "documents.npy", "hashes.npy", "manifest.json"],
)
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damage_is_found(copy, name, damage):
    file = copy / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-2])
    else:
        file.unlink()
    with pytest.raises(UserError, match=r"copy: (damaged|no) token store.*prepare"):
        open_store(str(copy))


def test_another_tokenizer_is_refused(copy):
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="made with another tokenizer"):
        open_store(str(copy))


def test_another_format_is_refused(copy):
    file = copy / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        open_store(str(copy))
