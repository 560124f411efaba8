"""Distillation: what the losses are, who learns, and what the step is given."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import config, optim, sharding, step, tree
from bert_jax.config import TaskSettings
from bert_jax.tasks import Task
from bert_jax.tasks.classify import classify
from bert_jax.tasks.distill import distill
from bert_jax.tasks.pretrain import pretrain
from bert_jax.tasks.span import span
from tests.model import batches
from tests.model.batches import packed, some_params

variant = functools.partial(batches.variant, scan=True)
SMALL, TEACHER = variant(), variant(layers=4)
EVERY = config.Distill(
    layers=(2, 4), soft=5.0, hard=2.0, cosine=1.0, hidden=0.5, attention=0.25
)
NAMES = {"mlm_soft_loss", "nsp_soft_loss", "cosine_loss", "hidden_loss"}
NAMES |= {"attention_loss"}


def settings(**edits) -> config.Distill:
    return dataclasses.replace(EVERY, **edits)


def pretraining(student=SMALL, teacher=TEACHER, how=EVERY, seed=3) -> Task:
    """The task of a student of a random teacher."""
    objective = config.Objective()
    given = some_params(teacher, seed=seed)
    return distill(
        pretrain(student, objective), pretrain(teacher, objective), how, given
    )


def ratios(task, params, batch, rng=None, given=None):
    pairs = jax.jit(task.loss)(params, batch, rng, *(given or task.given))
    return {name: float(total / weight) for name, (total, weight) in pairs.items()}


def test_every_loss_has_its_pair_and_its_factor():
    task, batch = pretraining(), packed([7, 5, 3])
    params = some_params()
    plain = pretrain(SMALL, config.Objective())
    found = ratios(task, params, batch)
    own = ratios(plain, params, batch, given=())
    assert found.keys() == own.keys() | NAMES
    for name, value in own.items():
        assert found[name] == pytest.approx(value, rel=1e-5)
    assert set(task.terms) == NAMES | {"mlm_loss", "nsp_loss"}
    wanted = 5 * (found["mlm_soft_loss"] + found["nsp_soft_loss"])
    wanted += 2 * (found["mlm_loss"] + found["nsp_loss"]) + found["cosine_loss"]
    wanted += 0.5 * found["hidden_loss"] + 0.25 * found["attention_loss"]
    total = task.total({name: jnp.float32(value) for name, value in found.items()})
    assert float(total) == pytest.approx(wanted, rel=1e-5)


def test_what_counts_nothing_is_no_term():
    task = pretraining(how=config.Distill(hard=0.0, soft=1.0))
    found = ratios(task, some_params(), packed([7, 5, 3]))
    assert task.terms == ("mlm_soft_loss", "nsp_soft_loss")
    assert not found.keys() & {"cosine_loss", "hidden_loss", "attention_loss"}


def test_scoring_knows_no_teacher():
    task, plain = pretraining(), pretrain(SMALL, config.Objective())
    params, batch = some_params(), packed([7, 5, 3])
    pairs = jax.jit(task.loss)(params, batch, None)
    assert pairs == jax.jit(plain.loss)(params, batch, None)


def test_a_student_that_is_its_teacher():
    how, batch = settings(layers=(1, 2), temperature=1.5), packed([7, 5, 3])
    task = pretraining(teacher=SMALL, how=how)
    (params,) = task.given
    found = ratios(task, params, batch)
    for name in ("cosine_loss", "hidden_loss", "attention_loss"):
        assert found[name] == pytest.approx(0, abs=1e-6)
    logits = jax.jit(pretrain(SMALL, config.Objective()).predict)(params, batch)
    for name in ("mlm", "nsp"):
        log = np.asarray(jax.nn.log_softmax(logits[f"{name}_logits"] / 1.5))
        entropy = -(np.exp(log) * log).sum(-1)
        mean = np.average(entropy, weights=batch[f"{name}_weight"])
        assert found[f"{name}_soft_loss"] == pytest.approx(1.5**2 * mean, rel=1e-4)


def traces(model, params, batch):
    """Hidden states and scores in float64, of a model that keeps them."""
    bert = pretrain(model, config.Objective()).parts
    assert bert is not None
    apply = functools.partial(bert.bert.clone(keep="scores").apply, method="traces")
    found = jax.jit(apply)({"params": params}, batch)
    return [np.asarray(array, np.float64) for array in found]


def test_features_and_attention_by_the_formula():
    batch, params = packed([7, 5]), some_params()
    task = pretraining(how=settings(layers=(1, 4)))
    found = ratios(task, params, batch)
    (hidden, scores), (taught, looks) = (
        traces(model, p, batch)
        for model, p in ((SMALL, params), (TEACHER, task.given[0]))
    )
    example = batch["example"]
    real = example > 0
    inner = (hidden[-1] * taught[-1]).sum(-1)
    sizes = [np.linalg.norm(x[-1], axis=-1) for x in (hidden, taught)]
    wanted = (1 - inner / sizes[0] / sizes[1])[real].mean()
    assert found["cosine_loss"] == pytest.approx(wanted, rel=1e-4)
    error = np.square(hidden - taught[[0, 1, 4]]).mean(-1)
    assert found["hidden_loss"] == pytest.approx(error.sum(0)[real].mean(), rel=1e-4)
    seen = (example[:, :, None] == example[:, None]) & real[:, None]
    error = np.square(scores - looks[[0, 3]]).mean(2)
    assert found["attention_loss"] == pytest.approx(error.sum(0)[seen].mean(), rel=1e-4)


def test_another_width_is_mapped():
    narrow = variant(hidden=8)
    task, batch = pretraining(narrow, how=settings(cosine=0.0)), packed([7, 5])
    params = jax.jit(task.init)(jax.random.key(1))
    maps = {name: leaf["kernel"] for name, leaf in params["distill"].items()}
    assert {name: k.shape for name, k in maps.items()} == {
        "embeddings": (8, 12),
        "layers": (8, 12),
    }
    found = ratios(task, params, batch)
    (hidden, _), (taught, _) = (
        traces(model, p, batch)
        for model, p in ((narrow, params), (TEACHER, task.given[0]))
    )
    both = [hidden[:1] @ maps["embeddings"], hidden[1:] @ maps["layers"]]
    error = np.square(np.concatenate(both) - taught[[0, 2, 4]]).mean(-1)
    wanted = error.sum(0)[batch["example"] > 0].mean()
    assert found["hidden_loss"] == pytest.approx(wanted, rel=1e-4)
    assert "distill" not in pretraining(narrow, how=settings(hidden=0.0)).init(
        jax.random.key(0)
    )


def test_the_teacher_neither_learns_nor_drops():
    teacher = variant(layers=4, dropout=0.5, attention_dropout=0.5)
    still = variant(dropout=0.0, attention_dropout=0.0)
    task, batch = pretraining(still, teacher), packed([7, 5, 3])
    params = some_params()
    assert ratios(task, params, batch) == ratios(task, params, batch, jax.random.key(0))

    def total(params, given):
        pairs = task.loss(params, batch, None, given)
        return task.total({name: a / b for name, (a, b) in pairs.items()})

    ours, theirs = jax.jit(jax.grad(total, (0, 1)))(params, *task.given)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(theirs))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(ours["layers"]["mlp"]))


def test_the_student_runs_once():
    batch, params = packed([7, 5, 3]), some_params()
    task = pretraining(how=settings(attention=0.0))
    alone = [pretrain(model, config.Objective()) for model in (SMALL, TEACHER)]

    def flops(function, *arguments):
        compiled = jax.jit(function).lower(*arguments).compile()
        return compiled.cost_analysis()["flops"]

    both = flops(task.loss, params, batch, None, *task.given)
    apart = flops(alone[0].loss, params, batch, None)
    apart += flops(alone[1].loss, *task.given, batch, None)
    assert both < 1.2 * apart


OPTIMIZER = optim.optimizer(config.Optim(peak_rate=1e-2, warmup_share=0), 9)
SCHEDULE = optim.learning_rate(config.Optim(), 9)
STILL = variant(hidden=8, dropout=0.0, attention_dropout=0.0)
BATCH = packed([7, 5, 3], rows=16)


@functools.cache
def steps(*shape, accumulate=1):
    """Metrics of two steps, and the parameters after them."""
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = sharding.make_mesh(config.Mesh(*shape), devices)
    task = pretraining(STILL, how=settings(cosine=0.0))
    (given,) = task.given
    given = jax.device_put(given, sharding.param_shardings(mesh, given))
    task = task._replace(given=(given,))
    state = step.init_state(task, OPTIMIZER, mesh, 0)
    make = step.make_train_step(task, OPTIMIZER, SCHEDULE, mesh, 0, accumulate)
    told = []
    for _ in range(2):
        state, metrics = make(state, BATCH, *task.given)
        told.append({name: float(value) for name, value in metrics.items()})
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    return told, jax.device_get(tree.flatten(state.params))


@pytest.mark.parametrize(
    ("shape", "accumulate"),
    [
        pytest.param((2, 2, 2), 1, marks=pytest.mark.slow),
        ((1, 1, 1), 4),
        pytest.param((8, 1, 1), 1, marks=pytest.mark.slow),
    ],
)
def test_neither_mesh_nor_micro_batches_change_a_step(shape, accumulate):
    one, many = steps(1, 1, 1), steps(*shape, accumulate=accumulate)
    for a, b in zip(one[0], many[0], strict=True):
        assert a.keys() == b.keys() and a.keys() > NAMES - {"cosine_loss"}
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-4), name
    for name, value in one[1].items():
        np.testing.assert_allclose(value, many[1][name], rtol=1e-2, atol=1e-4)


def test_frozen_parameters_have_no_gradient():
    from bert_jax.tasks import frozen

    rule = config.Optim(freeze="^(embeddings|layers)/")
    task, params = frozen(pretraining(), rule), some_params()
    batch = packed([7, 5, 3])

    def total(params):
        pairs = task.loss(params, batch, None, *task.given)
        return task.total({name: a / b for name, (a, b) in pairs.items()})

    found = jax.jit(jax.grad(total))(params)
    assert not np.any(found["layers"]["mlp"]["up"]["kernel"])
    assert np.any(found["mlm"]["transform"]["kernel"])


def test_the_teacher_is_an_argument_and_no_constant():
    mesh = sharding.make_mesh(config.Mesh(1, 1, 1), jax.devices()[:1])
    how = config.Distill()
    task, other = pretraining(how=how), pretraining(how=how, seed=8)
    task = task._replace(given=jax.device_put(task.given, sharding.replicated(mesh)))
    make = step.make_train_step(task, OPTIMIZER, SCHEDULE, mesh, 0)
    losses = []
    for given in (task.given, other.given):
        state = step.init_state(task, OPTIMIZER, mesh, 0)
        losses.append(float(make(state, packed([7, 5, 3]), *given)[1]["mlm_soft_loss"]))
    assert losses[0] != losses[1]
    text = make.lower(state, packed([7, 5, 3]), *task.given).as_text()
    constants = [line for line in text.splitlines() if "constant" in line]
    assert constants and max(map(len, constants)) < 1000


def soft(task, logits, teacher, batch, how):
    """The soft loss of any task, from logits."""
    from bert_jax.tasks.distill import _soft

    ((total, weight),) = _soft(task.parts, logits, teacher, batch, how).values()
    return float(total), float(weight)


def entropy(own, other, temperature):
    """Of one choice, in float64."""
    own, other = (np.asarray(x, np.float64) / temperature for x in (own, other))
    share = np.exp(other - np.log(np.exp(other).sum()))
    return -(temperature**2) * (share * (own - np.log(np.exp(own).sum()))).sum()


def test_soft_spans_are_within_each_example():
    batch = packed([7, 5, 3])
    batch["weight"] = np.ones((5, 4), np.float32)
    batch["weight"][:, 3] = 0  # an empty slot
    batch["weight"][0, 1] = 0
    own, other = np.random.default_rng(0).standard_normal((2, 5, 16, 2), np.float32)
    wanted = 0.0
    for row in range(5):
        for slot in range(3):
            here = batch["example"][row] == slot + 1
            for end in range(2):
                pair = own[row, here, end], other[row, here, end]
                wanted += batch["weight"][row, slot] * entropy(*pair, 2.0)
    total, weight = soft(
        span(SMALL), jnp.asarray(own), jnp.asarray(other), batch, config.Distill()
    )
    assert (total, weight) == (pytest.approx(wanted, rel=1e-5), 2 * 14)


def test_soft_choices_are_within_each_question():
    task = classify(SMALL, TaskSettings(kind="choice"))
    group = np.array([[0, 0, 1], [1, 0, 2], [2, 2, 0]], np.int32)
    weight = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0]], np.float32)
    own, other = np.random.default_rng(0).standard_normal((2, 3, 3, 1), np.float32)
    wanted = 0.0
    for question in range(3):
        here = (group == question) & (weight > 0)
        wanted += entropy(own[here, 0], other[here, 0], 2.0)
    batch = {"weight": weight, "group": group}
    pair = jnp.asarray(own), jnp.asarray(other)
    total, count = soft(task, *pair, batch, config.Distill())
    assert (total, count) == (pytest.approx(wanted, rel=1e-5), 3)


@pytest.mark.parametrize("kind", ["classify", "tag", "regress", "choice", "span"])
def test_every_kind_learns_from_a_teacher(kind):
    labels = ("a", "b", "c") if kind in ("classify", "tag") else ()
    asked = TaskSettings(kind=kind, labels=labels)
    tasks = [
        span(model) if kind == "span" else classify(model, asked)
        for model in (SMALL, TEACHER)
    ]
    params, given = (batches.draw(task) for task in tasks)
    batch = packed([7, 5, 3])
    shape = (5, 16) if kind == "tag" else (5, 3)
    batch["weight"] = np.ones(shape, np.float32)
    batch["label"] = np.zeros(shape, np.float32 if kind == "regress" else np.int32)
    if kind == "choice":
        batch["group"] = np.repeat(np.arange(5, dtype=np.int32), 3).reshape(5, 3)
        batch["label"] = (np.arange(15) % 3 == 0).astype(np.int32).reshape(5, 3)
    if kind == "span":
        batch["label"] = np.zeros((5, 3, 2), np.int32)
    task = distill(*tasks, config.Distill(), given)
    assert task.terms == ("loss", "soft_loss")

    @jax.jit
    @jax.value_and_grad
    def total(params):
        pairs = task.loss(params, batch, None, given)
        return task.total({name: a / b for name, (a, b) in pairs.items()})

    value, gradient = total(params)
    assert np.isfinite(value) and value > 0
    lower, _ = total(jax.tree.map(lambda p, g: p - 1e-2 * g, params, gradient))
    assert lower < value
