"""RoBERTa, ALBERT, ELECTRA and DistilBERT: the numbers of transformers, in and out."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from bert_jax import interop
from bert_jax.__main__ import main
from bert_jax.interop.families import FAMILIES
from bert_jax.model import Bert
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


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "ElectraForPreTraining"])
def test_packed_rows_give_the_logits_of_transformers(kind, tmp_path):
    named = {0: "no", 1: "perhaps", 2: "yes"}
    several = kind.endswith(("SequenceClassification", "TokenClassification"))
    settings = hugging.SETTINGS[hugging.family(kind)]
    model = hugging.saved(
        tmp_path, kind, settings | ({"id2label": named} if several else {}), 3
    )
    source, arrays = interop.load(tmp_path), _packed()
    assert not several or source.task.labels == tuple(named.values())
    bert = Bert(source.model, classes=max(1, len(source.task.labels)))
    apply = jax.jit(bert.apply, static_argnames="method")
    tokens, examples = _theirs(model, kind, arrays)
    method = {"pretrain": "pretrain", "encoder": "encode", "classify": "classify"}
    method |= {"choice": "classify", "tag": "tag", "span": "tag"}
    if "nsp" not in source.params and source.task.kind == "pretrain":
        del arrays["nsp_position"]
    variables = {"params": source.params}
    found = apply(variables, arrays, method=method[source.task.kind])
    if source.task.kind == "pretrain":
        _close(found["mlm_logits"][0, :, : source.model.vocab_size], tokens)
        assert (examples is None) == ("nsp_logits" not in found)
        if examples is not None:
            _close(found["nsp_logits"][0], examples.reshape(-1, 2))
    else:
        wanted = tokens if examples is None else examples.reshape(len(LENGTHS), -1)
        _close(found[0], wanted)


def _round_trip(source, folder):
    run, out = folder / "run", folder / "out"
    assert main(["import", f"--source={source}", f"--workdir={run}"]) == 0
    assert main(["export", f"--workdir={run}", f"--output={out}"]) == 0
    return run, out


@pytest.mark.parametrize("kind", KINDS)
def test_export_of_import_is_bit_identical_and_loads(kind, tmp_path, capfd):
    import transformers

    source = tmp_path / "source"
    source.mkdir()
    hugging.saved(source, kind, hugging.SETTINGS[hugging.family(kind)])
    _, out = _round_trip(source, tmp_path)
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
