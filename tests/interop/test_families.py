"""RoBERTa, ALBERT, ELECTRA and DistilBERT: the numbers of transformers, in and out."""

import json
import re
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from bert_jax import interop
from bert_jax.__main__ import main
from bert_jax.checkpoint import Checkpoints
from bert_jax.config import Config, Model, Objective, TaskSettings, Tokenizer, to_json
from bert_jax.data import answers
from bert_jax.data.sequences import frame, rows_of
from bert_jax.data.squad import Question
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.interop import huggingface
from bert_jax.interop.families import FAMILIES
from bert_jax.model import Bert
from bert_jax.model.electra import ReplacedHead
from bert_jax.tasks.pretrain import pretrain
from tests.interop import hugging

# Every class, with the BERT it was before: test_files and test_parity have that one.
KINDS = [
    family.title + suffix
    for family in FAMILIES
    if family.title != "Bert"
    for suffix in family.classes
]
LENGTHS = 14, 9, 13  # of examples that share a row


def _close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def _packed():
    """A row of examples of these lengths, in which every token is to be predicted."""
    rng = np.random.default_rng(4)
    total, place = sum(LENGTHS), [np.arange(n) for n in LENGTHS]
    number = np.repeat(np.arange(len(LENGTHS)) + 1, LENGTHS)
    starts = np.cumsum([0, *LENGTHS[:-1]])
    arrays = {
        "token": rng.integers(5, 301, total),
        "segment": np.concatenate([p >= len(p) // 2 for p in place]),
        "position": np.concatenate(place),
        "example": number,
        "mlm_position": np.arange(total),
        "nsp_position": starts,
    }
    return {name: array.astype(np.int32)[None] for name, array in arrays.items()}


def _theirs(model, kind, arrays):
    """transformers' outputs for each example by itself: of tokens, of examples."""
    torch = hugging.torch()
    tokens, examples = [], []
    for number in range(1, len(LENGTHS) + 1):
        own = arrays["example"] == number
        given = {"input_ids": torch.tensor(arrays["token"][own][None]).long()}
        if getattr(model.config, "type_vocab_size", 0) > 1:
            segment = torch.tensor(arrays["segment"][own][None]).long()
            given["token_type_ids"] = segment
        if kind.endswith("MultipleChoice"):
            given = {name: value[None] for name, value in given.items()}
        with torch.no_grad():
            out = model(**given)
        if kind == "AlbertForPreTraining":
            tokens.append(out.prediction_logits[0])
            examples.append(out.sop_logits[0])
        elif kind.endswith("QuestionAnswering"):
            tokens.append(torch.stack([out.start_logits, out.end_logits], -1)[0])
        elif kind.endswith("Model"):
            tokens.append(out.last_hidden_state[0])
        elif kind.endswith(("SequenceClassification", "MultipleChoice")):
            examples.append(out.logits[0])
        else:
            tokens.append(out.logits[0])
    return [np.concatenate(each) if each else None for each in (tokens, examples)]


def _odds(source, arrays):
    """Logits of replaced tokens."""
    bert, head = Bert(source.model), ReplacedHead(source.model)
    apply = jax.jit(bert.apply, static_argnames="method")
    hidden = apply({"params": source.params}, arrays, method="encode")
    return jax.jit(head.apply)({"params": source.params["rtd"]}, hidden)[:, :, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_the_logits_of_transformers(kind, tmp_path):
    named = {0: "no", 1: "perhaps", 2: "yes"}
    several = kind.endswith(("SequenceClassification", "TokenClassification"))
    settings = hugging.SETTINGS[hugging.family(kind)]
    model = hugging.saved(
        tmp_path, kind, settings | ({"id2label": named} if several else {}), 3
    )
    source, arrays = interop.load(tmp_path), _packed()
    assert not several or source.task.labels == tuple(named.values())
    span = source.task.kind == "span"
    bert = Bert(source.model, classes=2 if span else max(1, len(source.task.labels)))
    apply = jax.jit(bert.apply, static_argnames="method")
    tokens, examples = _theirs(model, kind, arrays)
    method = {"pretrain": "pretrain", "encoder": "encode", "classify": "classify"}
    method |= {"choice": "classify", "tag": "tag", "span": "tag"}
    if "nsp" not in source.params and source.task.kind == "pretrain":
        del arrays["nsp_position"]
    variables = {"params": source.params}
    if "rtd" in source.params:
        _close(_odds(source, arrays)[0], tokens)
        return
    found = apply(variables, arrays, method=method[source.task.kind])
    if source.task.kind == "pretrain":
        _close(found["mlm_logits"][0, :, : source.model.vocab_size], tokens)
        assert (examples is None) == ("nsp_logits" not in found)
        if examples is not None:
            _close(found["nsp_logits"][0], examples.reshape(-1, 2))
    else:
        wanted = tokens if examples is None else examples.reshape(len(LENGTHS), -1)
        _close(found[0], wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_export_of_import_is_bit_identical_and_loads(kind, tmp_path, capfd):
    import transformers

    source = tmp_path / "source"
    source.mkdir()
    hugging.saved(source, kind, hugging.SETTINGS[hugging.family(kind)])
    _, out = hugging.round_trip(source, tmp_path)
    old, new = (load_file(d / "model.safetensors") for d in (source, out))
    assert old.keys() == new.keys()
    for name, array in old.items():
        if kind.startswith("Roberta") and "position_embeddings" in name:
            array[:2] = 0  # belong to no position
        np.testing.assert_array_equal(array, new[name], name)
    capfd.readouterr()
    loaded, report = getattr(transformers, kind).from_pretrained(
        out, output_loading_info=True
    )
    assert not any(report.values()), report
    told = capfd.readouterr().err
    assert not re.search("warn|missing|unexpected|newly", told, re.IGNORECASE), told
    assert loaded.config.architectures == [kind]
    old, new = (json.loads((d / "config.json").read_text()) for d in (source, out))
    known = {name for name in old if name in new} - {"transformers_version"}
    special = {"pad_token_id", "bos_token_id", "eos_token_id"}
    if hugging.family(kind) == "Roberta":  # the others have a tokenizer made up here
        assert special <= known
    for name in known - special:
        assert old[name] == new[name], name
    first, second = interop.load(source), interop.load(out)
    assert first.model == second.model and first.task == second.task
    assert first.pair == second.pair
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


TEXTS = [*hugging.TEXT[:3], "the quick", "", "a \u4e2d b"]


@pytest.mark.parametrize("family", ["Roberta", "Albert"])
def test_tokens_are_those_of_transformers(family, tmp_path):
    hugging.torch()
    import transformers

    source = tmp_path / "source"
    source.mkdir()
    hugging.saved(source, f"{family}ForMaskedLM", hugging.SETTINGS[family])
    theirs = getattr(transformers, f"{family}Tokenizer").from_pretrained(source)
    _, out = hugging.round_trip(source, tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(out)
    ours = interop.load(source).tokenizer
    found, offsets = ours.encode_batch(TEXTS)
    ids = [part.tolist() for part in np.split(found, offsets[1:-1])]
    assert ids == theirs(TEXTS, add_special_tokens=False)["input_ids"]
    assert ids == again(TEXTS, add_special_tokens=False)["input_ids"]
    framed = theirs("the fox" + theirs.mask_token)["input_ids"]
    assert framed == again("the fox" + again.mask_token)["input_ids"]
    vocabulary = ours.vocabulary()
    assert framed[0] == vocabulary.cls and framed[-1] == vocabulary.sep
    assert framed[-2] == vocabulary.mask == ours.encode("[MASK]", special=True)[0]
    assert vocabulary.pad == theirs.pad_token_id == again.pad_token_id
    given = again("the fox", "the dog")
    assert given["input_ids"] == theirs("the fox", "the dog")["input_ids"]
    assert ("token_type_ids" in given) == (family == "Albert")


PAIRS = [("the quick", "jumps over the lazy dog"), ("", "the fox"), (TEXTS[0], "jugs")]


@pytest.mark.parametrize("kind", ["Roberta", "Albert"])
@pytest.mark.parametrize("fast", [False, True])  # whether tokenizer.json is there
def test_pairs_give_the_logits_of_transformers(kind, fast, tmp_path):
    torch = hugging.torch()
    import transformers

    model = hugging.saved(
        tmp_path, f"{kind}ForSequenceClassification", hugging.SETTINGS[kind], 3
    )
    theirs = getattr(transformers, f"{kind}Tokenizer").from_pretrained(tmp_path)
    if fast:
        theirs.save_pretrained(tmp_path)
    source = interop.load(tmp_path)
    first, second = (list(column) for column in zip(*PAIRS, strict=True))
    limit = 20
    found = frame(source.tokenizer, first, second, limit)
    assert found.cut
    given = theirs(
        *(first, second),
        truncation="longest_first",
        max_length=limit,
        return_token_type_ids=model.config.type_vocab_size > 1,
    )
    rows = np.split(found.token, found.offset[1:-1])
    assert [row.tolist() for row in rows] == given["input_ids"]

    arrays, _ = rows_of(found, np.arange(len(PAIRS))[:, None], limit)
    apply = jax.jit(Bert(source.model, classes=2).apply, static_argnames="method")
    logits = apply({"params": source.params}, arrays, method="classify")
    with torch.no_grad():
        padded = theirs.pad(given, return_tensors="pt")
        _close(logits[:, 0], model(**padded).logits)


def test_questions_are_framed_as_in_transformers(tmp_path):
    hugging.torch()
    import transformers

    hugging.saved(tmp_path, "RobertaForQuestionAnswering", hugging.SETTINGS["Roberta"])
    theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    ours = interop.load(tmp_path).tokenizer
    asked = Question("a", "the quick fox?", TEXTS[0], (("fox", 16),), False, "here")
    windows = answers.encode(ours, [asked], limit=100, stride=20)
    token = windows.sequences.token
    assert token.tolist() == theirs(asked.question, asked.context)["input_ids"]
    first, last = windows.sequences.span[windows.label[0]]
    assert asked.context[first[0] : last[1]] == "fox"
    assert max(np.diff(answers.encode(ours, [asked], 8, 20).sequences.offset)) == 8


def _tiny(**edits):
    settings: dict[str, Any] = {
        "vocab_size": 201,
        "hidden": 48,
        "layers": 2,
        "heads": 4,
        "mlp": 80,
    }
    return Model(**settings | {"positions": 128, "dtype": "float32"} | edits)


@pytest.mark.parametrize(
    ("edits", "fields"),
    [
        ({"norm": "pre", "position": "rope", "window": 8}, "window position norm"),
        ({"mixer": "mamba", "segments": 0, "position": "none"}, "mixer position"),
        ({"feed_forward": "geglu"}, "feed_forward"),
        ({"layer_groups": 1}, "embedding layer_groups"),
        ({"embedding": 24, "activation": "gelu_tanh"}, "activation"),
        ({"activation": "silu"}, "activation"),
    ],
)
def test_what_no_class_computes_is_refused_by_the_fields_in_the_way(edits, fields):
    model = _tiny(**edits)
    init = pretrain(model, Objective(pair="none")).init
    params = jax.eval_shape(init, jax.random.key(0))
    with pytest.raises(UserError) as caught:
        huggingface.to_tensors(params, model, TaskSettings())
    named = re.findall(r"(\w+)=", str(caught.value))
    assert set(named) <= set(fields.split()) and named, str(caught.value)


def test_an_lstm_on_top_is_refused():
    settings = TaskSettings(kind="classify", labels=("a", "b"), lstm=True)
    with pytest.raises(UserError, match=r"task.lstm=True.*predict$"):
        huggingface.to_tensors({}, _tiny(), settings)


def test_the_class_with_most_of_the_parts_is_chosen():
    model = _tiny(segments=1, activation="gelu")
    shapes = jax.eval_shape(pretrain(model, Objective()).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    kind, _ = huggingface.to_tensors(params, model, TaskSettings())
    assert kind == "BertForPreTraining"
    without = {name: params[name] for name in ("embeddings", "layers", "mlm")}
    kind, tensors = huggingface.to_tensors(without, model, TaskSettings(), pad=4)
    assert kind == "RobertaForMaskedLM"
    table = tensors["roberta.embeddings.position_embeddings.weight"]
    assert len(table) == model.positions + 5


def _electra_run(folder, params, config):
    """A run directory that holds an ELECTRA, as if trained."""
    run = folder / "run"
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save_params(params)
    hugging.write_vocabulary(folder, config.model.vocab_size)
    load_tokenizer(folder, Tokenizer()).save(run / "tokenizer")
    (run / "config.json").write_text(to_json(config))
    return run


@pytest.mark.parametrize("embedding", [pytest.param(24, marks=pytest.mark.slow), 0])
def test_both_halves_of_an_electra(embedding, tmp_path, capfd):
    torch = hugging.torch()
    import transformers

    model = _tiny(embedding=embedding, activation="gelu", pooler="gelu", init_std=0.2)
    objective = Objective(kind="rtd", pair="none", generator_size=0.5)
    params = pretrain(model, objective).init(jax.random.key(1))
    config = Config(model=model, objective=objective)
    run, out = _electra_run(tmp_path, params, config), tmp_path / "out"
    capfd.readouterr()
    assert main(["export", f"--workdir={run}", f"--output={out}", "--json"]) == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    kinds = {
        "discriminator": "ElectraForPreTraining",
        "generator": "ElectraForMaskedLM",
    }
    assert told["models"] == {str(out / half): kind for half, kind in kinds.items()}
    token = np.random.default_rng(0).integers(5, 201, (1, 17)).astype(np.int32)
    arrays = {"token": token, "segment": token * 0, "example": token * 0 + 1}
    place = np.arange(17, dtype=np.int32)[None]
    arrays |= {"position": place, "mlm_position": place}
    for half, kind in kinds.items():
        found, report = getattr(transformers, kind).from_pretrained(
            out / half, output_loading_info=True
        )
        assert not any(report.values()), report
        with torch.no_grad():
            wanted = found.eval()(torch.tensor(token).long()).logits.numpy()
        card = (out / half / "README.md").read_text()
        assert ("pipeline_tag" in card) == (half == "generator")
        source = interop.load(out / half)
        if half == "generator":
            apply = jax.jit(Bert(source.model).apply, static_argnames="method")
            outputs = apply({"params": source.params}, arrays, method="pretrain")
            ours = outputs["mlm_logits"]
            small = {"embeddings": params["embeddings"], **params["generator"]}
            jax.tree.map(_same_rows, source.params, small)
        else:
            ours = _odds(source, arrays)
            whole = {name: p for name, p in params.items() if name != "generator"}
            jax.tree.map(_same_rows, source.params, whole)
        _close(np.asarray(ours)[..., : wanted.shape[-1]], wanted)


def _same_rows(a, b):
    """Equal, but for rows that pad the vocabulary."""
    rows = 201 if a.shape[0] == 256 else len(a)
    np.testing.assert_array_equal(a[:rows], b[:rows])
