"""Matrix products in every order of their axes, and sums over rows in bfloat16."""

import ast
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax.model
from bert_jax.losses import cross_entropy
from bert_jax.model import gather
from bert_jax.model.bert import _tied
from bert_jax.model.encoder import Embeddings
from bert_jax.model.layers import Dense, Norm
from bert_jax.model.mamba import _at_all
from bert_jax.model.products import product
from tests.model.batches import variant

ROWS = 16_384
NARROW = variant(dtype="bfloat16", hidden=8)
FORMS = list(itertools.product(("mk", "km"), ("kn", "nk"), ("mn", "nm")))


@pytest.mark.parametrize(("left", "right", "out"), FORMS)
@pytest.mark.parametrize("batch", ["", "b"])
def test_bfloat16_products_run_whatever_is_transposed(left, right, out, batch):
    """XLA's CPU back end has no kernel for a transposed product of such factors."""
    sizes = {"b": 3, "m": 16, "k": 32, "n": 24}
    rng = np.random.default_rng(0)
    x, y = (
        jnp.asarray(rng.standard_normal([sizes[a] for a in batch + axes]), jnp.bfloat16)
        for axes in (left, right)
    )
    over = f"{batch}{left},{batch}{right}->{batch}mn"

    @jax.jit
    def found(x, y):
        z = product(over, x, y, jnp.bfloat16, jnp.float32)
        return jnp.einsum(f"{batch}mn->{batch}{out}", z)

    wanted = np.einsum(
        over.replace("mn", out), *(np.asarray(v, np.float32) for v in (x, y))
    )
    np.testing.assert_allclose(found(x, y), wanted, rtol=1e-4, atol=1e-4)


def test_products_of_the_model_are_made_in_one_place():
    folder = Path(bert_jax.model.__file__).parent
    names = {"einsum", "matmul", "tensordot", "dot", "vdot", "inner", "dot_general"}
    for file in folder.glob("*.py"):
        if file.name in ("products.py", "kernels.py"):  # the latter is Triton's
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            where = f"{file.name}:{getattr(node, 'lineno', 0)}"
            matmul = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
            assert not matmul, where
            if isinstance(node, ast.Attribute):
                assert node.attr not in names, where


def _gradients(module: Any, x):
    """Those of the parameters where every output has the gradient 1."""
    params = module.init(jax.random.key(0), x[:, :2])

    def total(params):
        return module.apply(params, x).astype(jnp.float32).sum()

    return jax.jit(jax.grad(total))(params)["params"]


def _dense():
    x = jnp.ones((64, ROWS // 64, 8), jnp.bfloat16)
    return _gradients(Dense(NARROW, (4,)), x)


def _norm():
    x = jnp.ones((64, ROWS // 64, 8), jnp.bfloat16)
    return {"bias": _gradients(Norm(NARROW), x)["bias"]}


def _mamba():
    like = jnp.ones((ROWS // 8, 2, 8, 3), jnp.bfloat16)
    values = jnp.ones((2, 3))
    total = jax.grad(lambda v: _at_all(v, like).astype(jnp.float32).sum())
    return {"at_all": total(values)}


def _gathered():
    place = jnp.zeros((1, ROWS), jnp.int32)
    x = jnp.ones((1, 2, 3), jnp.bfloat16)
    total = jax.grad(lambda x: gather(x, place).astype(jnp.float32).sum())
    return {"first": total(x)[0, 0].astype(jnp.float32)}


def _vocabulary():
    x, table = jnp.ones((64, ROWS // 64, 2), jnp.bfloat16), jnp.ones((4, 2))

    def total(table, bias):
        found: Any = _tied(jnp.bfloat16, x, table, bias)
        return found.sum()

    table, bias = jax.jit(jax.grad(total, (0, 1)))(table, jnp.ones(4))
    return {"table": table, "bias": bias}


@pytest.mark.parametrize("part", [_dense, _norm, _mamba, _gathered, _vocabulary])
def test_a_sum_over_rows_is_exact(part):
    """In bfloat16 a sum of ones ends at 256."""
    for name, value in part().items():
        wanted = np.full(value.shape, ROWS, np.float32)
        np.testing.assert_array_equal(value, wanted, name)


@pytest.mark.slow
def test_embeddings_and_losses_add_in_float32():
    rows = ROWS // 2
    zeros = jnp.zeros((1, rows), jnp.int32)
    module: Any = Embeddings(
        variant(dtype="bfloat16", hidden=8, positions=2, dropout=0.0)
    )
    params = module.init(jax.random.key(0), *[zeros[:, :2]] * 3, words=None)

    def total(params, count):
        given = [zeros[:, :count]] * 3
        y = module.apply(params, *given, words=None)
        return (y.astype(jnp.float32) * jnp.arange(8.0)[None, None]).sum()

    whole, part = (jax.grad(total)(params, count) for count in (rows, 128))
    for a, b in zip(*map(jax.tree.leaves, (whole, part)), strict=True):
        np.testing.assert_allclose(a, rows / 128 * b, rtol=1e-3, atol=1e-3)
    logits = jnp.zeros((rows, 2), jnp.bfloat16)
    (loss, weight), _ = cross_entropy(logits, zeros[0], jnp.ones(rows))
    assert float(loss) == pytest.approx(rows * np.log(2), rel=1e-5)
    assert float(weight) == rows
