"""Live: the same weights and batches give the same numbers as transformers' BERT."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax import config, interop, optim, tree
from bert_jax.interop import names
from bert_jax.interop.families import BERT
from bert_jax.model import Bert
from bert_jax.model.lstm import BiLSTM
from bert_jax.tasks.pretrain import pretrain
from tests.interop import hugging


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """transformers' model and ours, of the same random weights."""
    directory = tmp_path_factory.mktemp("tiny")
    model = hugging.saved(directory, "BertForPreTraining", hugging.TINY)
    return model, interop.load(directory)


def _close(found, wanted, limit):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=limit)


def _compare_forward(model, source, arrays):
    torch = hugging.torch()
    with torch.no_grad():
        outputs = model(**hugging.inputs(arrays), output_hidden_states=True)
    bert = Bert(source.model, keep="hidden")
    apply = jax.jit(bert.apply, static_argnames="method")
    variables = {"params": source.params}
    states = apply(variables, arrays, method="hidden_states")
    real = arrays["example"] > 0
    assert len(states) == len(outputs.hidden_states)
    for ours, theirs in zip(states, outputs.hidden_states, strict=True):
        _close(np.asarray(ours)[real], theirs.numpy()[real], 1e-5)
    every = np.argsort(~real, axis=1, kind="stable").astype(np.int32)
    # All real positions at once, as if every token were masked.
    logits = apply(variables, arrays | {"mlm_position": every}, method="pretrain")
    mlm = np.asarray(logits["mlm_logits"])[:, :, : source.model.vocab_size]
    theirs = outputs.prediction_logits.numpy()
    theirs = np.take_along_axis(theirs, every[:, :, None], 1)
    counted = np.arange(real.shape[1]) < real.sum(1)[:, None]
    _close(mlm[counted], theirs[counted], 1e-5)
    nsp = outputs.seq_relationship_logits.numpy()
    _close(np.asarray(logits["nsp_logits"])[:, 0], nsp, 1e-5)


def test_forward_tiny(tiny):
    _compare_forward(*tiny, hugging.batch(301, 6, 37))


def test_forward_tanh_gelu(tmp_path):
    settings = hugging.TINY | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}
    model = hugging.saved(tmp_path, "BertForPreTraining", settings)
    source = interop.load(tmp_path)
    assert source.model.activation == "gelu_tanh"
    assert source.model.norm_epsilon == 1e-5
    _compare_forward(model, source, hugging.batch(301, 3, 37))


@pytest.mark.slow
def test_forward_base(tmp_path):
    model = hugging.saved(tmp_path, "BertForPreTraining", hugging.BASE)
    _compare_forward(model, interop.load(tmp_path), hugging.batch(30_522, 4, 128))


def test_gradients(tiny):
    model, source = tiny
    arrays = hugging.batch(301, 6, 37)
    model.zero_grad()
    model(**hugging.inputs(arrays), **hugging.labels(arrays)).loss.backward()
    theirs = {n: p.grad.numpy() for n, p in model.named_parameters()}
    task = pretrain(source.model, config.Objective())
    ours = jax.jit(jax.grad(lambda params: _loss(task, params, arrays)))(source.params)
    found = names.to_theirs(ours, BERT.table(), source.model, 0)
    assert found.keys() == theirs.keys()
    # A key's bias shifts all scores of a query alike: its gradient is rounding only.
    scale = max(np.linalg.norm(gradient) for gradient in theirs.values())
    for name, gradient in theirs.items():
        size = max(float(np.linalg.norm(gradient)), 1e-5 * scale)
        assert np.linalg.norm(found[name] - gradient) <= 1e-4 * size, name


def _loss(task, params, arrays):
    pairs = task.loss(params, arrays, None)
    return sum(pairs[name][0] / pairs[name][1] for name in task.terms)


def test_five_adamw_steps(tmp_path):
    torch = hugging.torch()
    model = hugging.saved(tmp_path, "BertForPreTraining", hugging.TINY, seed=2)
    source = interop.load(tmp_path)
    settings = config.Optim(peak_rate=1e-3, warmup_share=0.2, clip_norm=1.0)
    task = pretrain(source.model, config.Objective())
    optimizer = optim.optimizer(settings, 20)
    schedule = optim.learning_rate(settings, 20)
    params, state = source.params, optimizer.init(source.params)
    plain = ("bias", "LayerNorm.weight")
    groups = [
        {"params": [p for n, p in model.named_parameters() if not n.endswith(plain)]},
        {
            "params": [p for n, p in model.named_parameters() if n.endswith(plain)],
            "weight_decay": 0.0,
        },
    ]
    theirs = torch.optim.AdamW(
        groups, lr=1.0, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01
    )

    @jax.jit
    def ours_step(params, state, arrays):
        loss, gradients = jax.value_and_grad(lambda p: _loss(task, p, arrays))(params)
        updates, state = optimizer.update(gradients, state, params)
        return loss, optax.apply_updates(params, updates), state

    losses = []
    for step in range(5):
        arrays = hugging.batch(301, 6, 37, seed=step)
        for group in theirs.param_groups:
            group["lr"] = float(schedule(step))
        theirs.zero_grad()
        loss = model(**hugging.inputs(arrays), **hugging.labels(arrays)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        theirs.step()
        ours, params, state = ours_step(params, state, arrays)
        losses.append((float(ours), loss.item()))
    losses = np.array(losses)
    _close(losses[:, 0], losses[:, 1], 1e-4)
    moved = tree.flatten(
        jax.tree.map(lambda a, b: abs(a - b).max(), params, source.params)
    )
    assert min(moved.values()) > 0


@pytest.mark.parametrize(
    ("kind", "task", "method"),
    [
        ("BertForSequenceClassification", "classify", "classify"),
        ("BertForTokenClassification", "tag", "tag"),
        ("BertForQuestionAnswering", "span", "tag"),
        ("BertForMultipleChoice", "choice", "classify"),
    ],
)
def test_fine_tuned_heads(tmp_path, kind, task, method):
    torch = hugging.torch()
    named = {0: "no", 1: "perhaps", 2: "yes"} if task in ("classify", "tag") else {}
    settings = hugging.TINY | ({"id2label": named} if named else {})
    model = hugging.saved(tmp_path, kind, settings)
    source = interop.load(tmp_path)
    assert source.task.kind == task
    assert not named or source.task.labels == tuple(named.values())
    arrays = hugging.batch(301, 6, 37)
    given = hugging.inputs(arrays)
    if task == "choice":
        given = {name: value[None] for name, value in given.items()}
    with torch.no_grad():
        outputs = model(**given)
    classes = 2 if task == "span" else max(1, len(source.task.labels))
    bert = Bert(source.model, classes=classes)
    apply = jax.jit(bert.apply, static_argnames="method")
    found = np.asarray(apply({"params": source.params}, arrays, method=method))
    if task == "span":
        theirs = np.stack([outputs.start_logits, outputs.end_logits], -1)
    else:
        theirs = outputs.logits.numpy()
    if method == "tag":
        real = arrays["example"] > 0
        _close(found[real], theirs[real], 1e-5)
    else:
        _close(found.reshape(theirs.shape), theirs, 1e-5)


def _lstm_weights(model, layers):
    """A torch.nn.LSTM's tensors, or their gradients by name, as our parameters."""

    def both(name, layer):
        ways = [model[f"{name}_l{layer}{way}"] for way in ("", "_reverse")]
        return np.stack([way.reshape(4, -1, *way.shape[1:]) for way in ways])

    return {
        f"layer_{i}": {
            "input": both("weight_ih", i).transpose(3, 0, 1, 2),
            "recurrent": both("weight_hh", i).transpose(0, 3, 1, 2),
            "bias": both("bias_ih", i) + both("bias_hh", i),
        }
        for i in range(layers)
    }


def test_lstm():
    torch = hugging.torch()
    torch.manual_seed(0)
    model = torch.nn.LSTM(9, 6, 2, bidirectional=True, batch_first=True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 20, 9)).astype(np.float32)
    weight = rng.standard_normal((3, 20, 12)).astype(np.float32)
    theirs, _ = model(torch.tensor(x))
    (theirs * torch.tensor(weight)).sum().backward()
    named = dict(model.named_parameters())
    params = _lstm_weights({k: v.detach().numpy() for k, v in named.items()}, 2)

    def total(params):
        example = jnp.ones(x.shape[:2], jnp.int32)
        y = BiLSTM(6, 2).apply({"params": params}, jnp.asarray(x), example)
        return (y * weight).sum(), y

    gradients, ours = jax.jit(jax.grad(total, has_aux=True))(params)
    _close(np.asarray(ours), theirs.detach().numpy(), 1e-5)
    wanted = _lstm_weights({k: v.grad.numpy() for k, v in named.items()}, 2)
    for layer in wanted.values():
        layer["bias"] = layer["bias"] / 2  # both of theirs have the same gradient
    jax.tree.map(lambda a, b: _close(a, b, 1e-4), gradients, wanted)
