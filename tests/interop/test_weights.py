"""Weight files of other programs that are damaged, or of another kind than ours."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_jax import interop
from bert_jax.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
}


@pytest.fixture
def model(tmp_path):
    """A BertForMaskedLM of random weights."""
    rng = np.random.default_rng(0)
    tensors = {}

    def add(name, *shape):
        tensors[name] = rng.normal(size=shape).astype(np.float32)

    def norm(name):
        add(f"{name}.weight", 8)
        add(f"{name}.bias", 8)

    def linear(name, out, inputs):
        add(f"{name}.weight", out, inputs)
        add(f"{name}.bias", out)

    for name, rows in (("word", len(WORDS)), ("position", 16), ("token_type", 2)):
        add(f"bert.embeddings.{name}_embeddings.weight", rows, 8)
    norm("bert.embeddings.LayerNorm")
    layer = "bert.encoder.layer.0."
    for name in ("self.query", "self.key", "self.value", "output.dense"):
        linear(f"{layer}attention.{name}", 8, 8)
    norm(f"{layer}attention.output.LayerNorm")
    linear(f"{layer}intermediate.dense", 16, 8)
    linear(f"{layer}output.dense", 8, 16)
    norm(f"{layer}output.LayerNorm")
    linear("cls.predictions.transform.dense", 8, 8)
    norm("cls.predictions.transform.LayerNorm")
    add("cls.predictions.bias", len(WORDS))
    save_file(tensors, tmp_path / "model.safetensors")
    write(tmp_path, {"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return tmp_path


def write(place, values):
    (place / "config.json").write_text(json.dumps({**SIZES, **values}))


def change(place, function):
    """Replaces the tensors by what a function makes of them."""
    file = place / "model.safetensors"
    save_file(function(load_file(file)), file)


def _first(value):
    def function(tensors):
        name = next(iter(tensors))
        return {**tensors, name: value(tensors[name])}

    return function


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_first(lambda a: np.full_like(a, np.nan)), "not finite"),
        (_first(lambda a: np.full_like(a, np.inf)), "not finite"),
        (_first(lambda a: a.astype(ml_dtypes.float8_e4m3fn)), "is of type F8_E4M3"),
        (_first(lambda a: a.astype(np.int8)), "is of type I8"),
        (lambda t: {**t, "sentiment.out.weight": np.zeros((2, 8), "f4")}, "--drop='"),
    ],
)
def test_other_tensors_are_refused(model, function, message):
    change(model, function)
    with pytest.raises(UserError, match=message):
        interop.load(model)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(model, prefix):
    wanted = interop.load(model).params["mlm"]["bias"]
    change(model, lambda tensors: {prefix + n: a for n, a in tensors.items()})
    np.testing.assert_array_equal(interop.load(model).params["mlm"]["bias"], wanted)


def test_tensors_are_left_out_and_named(model):
    change(model, lambda t: {**t, "sentiment.out.weight": np.zeros((2, 8), "f4")})
    found = interop.load(model, interop.Choices(drop=r"^sentiment\."))
    assert found.dropped == ("sentiment.out.weight",) and "mlm" in found.params
    for pattern, message in (("^none", "no tensor"), ("(", "no regular expression")):
        with pytest.raises(UserError, match=message):
            interop.load(model, interop.Choices(drop=pattern))


def test_a_class_of_ones_own_is_read_as_another(model):
    write(model, {"model_type": "bert", "architectures": ["MyBert"]})
    with pytest.raises(UserError, match="MyBert.*--architecture="):
        interop.load(model)
    found = interop.load(model, interop.Choices(architecture="BertForMaskedLM"))
    assert found.task.kind == "pretrain" and "mlm" in found.params


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_dropout_prob": None}, "hidden_dropout_prob=null"),
        ({"layer_norm_eps": "1e-12"}, 'layer_norm_eps="1e-12"'),
        ({"hidden_size": -8}, "hidden_size=-8"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"hidden_act": None}, "hidden_act=None"),
        ({"vocab_size": None}, "no whole number for vocab_size"),
        ({"architectures": "MyBert"}, "'MyBert'"),
    ],
)
def test_values_of_another_kind_are_named(model, values, message):
    write(model, {"model_type": "bert", "architectures": ["BertForMaskedLM"], **values})
    with pytest.raises(UserError, match=message):
        interop.load(model)


def test_pointers_and_missing_files_are_named(model):
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="git-lfs"):
        interop.load(model)
    weights.write_bytes(whole[:-9])
    with pytest.raises(UserError, match="cut short"):
        interop.load(model)
    weights.rename(model / "model-1-of-2.safetensors")
    index = model / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-2-of-2.safetensors"}}')
    with pytest.raises(UserError, match="1 of the 1 files.*model-2-of-2"):
        interop.load(model)
    index.write_text('{"weight_map": null}')
    with pytest.raises(UserError, match="weight_map"):
        interop.load(model)


def _classifier(tensors, classes=2):
    kept = {n: a for n, a in tensors.items() if not n.startswith("cls.")}
    return kept | {
        "bert.pooler.dense.weight": np.zeros((8, 8), "f4"),
        "bert.pooler.dense.bias": np.zeros(8, "f4"),
        "classifier.weight": np.zeros((classes, 8), "f4"),
        "classifier.bias": np.zeros(classes, "f4"),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "multi_label"),
        ({"id2label": {"neg": 0, "pos": 1}}, "id2label"),
        ({"id2label": {"0": "a", "5": "b"}}, "names the class 5"),
        ({"id2label": {"0": "a", "1": "a"}}, "has a label twice"),
        ({"id2label": ["neg", "pos"]}, ""),
    ],
)
def test_classifiers(model, values, message):
    change(model, _classifier)
    named = {"architectures": ["BertForSequenceClassification"]}
    write(model, {"model_type": "bert", **named, **values})
    if not message:
        assert interop.load(model).task.labels == ("neg", "pos")
        return
    with pytest.raises(UserError, match=message):
        interop.load(model)
    choices = interop.Choices(architecture="BertModel", drop="^classifier")
    assert "head" not in interop.load(model, choices).params
