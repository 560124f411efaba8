"""Stored goldens: real weights, and tokenizations by the original code's rules.

Sources are in the README of the data folder: the weights are of the PyPI package
rxnfp, the goldens a float64 NumPy BERT's; the tokens are of swift-coreml-transformers.
"""

import json
import lzma

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from bert_jax import interop
from bert_jax.config import Tokenizer
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.model import Bert

pytestmark = pytest.mark.shared


@pytest.mark.parametrize(("act", "name"), [("gelu", "erf"), ("gelu_new", "tanh")])
def test_real_weights(shared, tmp_path, act, name):
    folder = shared / "reference" / "rxnfp_bert_pretrained"
    settings = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"hidden_act": act}))
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    save_file(dict(np.load(folder / "weights.npz")), tmp_path / "model.safetensors")
    source = interop.load(tmp_path)
    golden = np.load(folder / "golden_numpy_fp64.npz")
    place = np.arange(golden["input_ids"].shape[1], dtype=np.int32)
    arrays = {
        "token": golden["input_ids"],
        "segment": golden["segment_ids"],
        "position": np.broadcast_to(place, golden["input_ids"].shape),
        "example": golden["input_mask"],
        "mlm_position": np.broadcast_to(place, golden["input_ids"].shape),
        "nsp_position": np.zeros((len(golden["input_ids"]), 1), np.int32),
    }
    bert = Bert(source.model)
    apply = jax.jit(bert.apply, static_argnames="method")
    variables = {"params": source.params}
    real = golden["input_mask"] > 0
    hidden = np.asarray(apply(variables, arrays, method="encode"))
    _close(hidden[real], golden[f"seq_{name}"][real])
    logits = apply(variables, arrays, method="pretrain")
    mlm = np.asarray(logits["mlm_logits"])[:, :, : source.model.vocab_size]
    _close(mlm[real], golden[f"mlm_logits_{name}"][real])
    _close(np.asarray(logits["nsp_logits"])[:, 0], golden[f"nsp_logits_{name}"])


def _close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_tokenization_of_ten_thousand_questions(shared):
    folder = shared / "reference" / "golden_tokenization"
    read = [
        json.loads(lzma.open(folder / f"{name}.json.xz", "rb").read())
        for name in ("question_tokens", "tokenized_questions")
    ]
    questions, ids = read
    vocabulary = shared / "reference" / "vocab" / "bert-base-uncased.txt"
    tokenizer = load_tokenizer(vocabulary, Tokenizer())
    assert len(questions) == len(ids) == 10_570
    found, offsets = tokenizer.encode_batch([q["original"] for q in questions])
    for i, (wanted, question) in enumerate(zip(ids, questions, strict=True)):
        mine = found[offsets[i] : offsets[i + 1]].tolist()
        assert mine == wanted, question["original"]
        assert [tokenizer.token(t) for t in mine] == question["wordpiece"]
