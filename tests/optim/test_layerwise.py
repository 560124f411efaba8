import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import config, optim, tree
from bert_jax.errors import UserError
from bert_jax.tasks import frozen
from tests import linear_task

N = linear_task.N


def factors(**edits):
    return tree.flatten(
        optim.rate_factors(config.Optim(**edits), linear_task.structs())
    )


def test_the_rate_falls_by_one_factor_a_layer():
    found = factors(layer_decay=0.5)
    assert found["pooler/kernel"] == found["nsp/bias"] == 1
    for name in ("layers/mlp/up/kernel", "layers/attention/norm/bias"):
        np.testing.assert_allclose(found[name].ravel(), [0.0625, 0.125, 0.25, 0.5])
        shape = tree.flatten(linear_task.structs())[name].shape
        assert found[name].shape == (N,) + (1,) * (len(shape) - 1)
    assert found["embeddings/token"] == 0.5 ** (N + 1)


def test_without_decay_and_freezing_all_are_one():
    assert all((factor == 1).all() for factor in factors().values())


def changed(**edits):
    """The share of each parameter's values, by layer, that three steps change."""
    settings = config.Optim(
        peak_rate=0.1, warmup_share=0.0, weight_decay=0.3, schedule="constant", **edits
    )
    optimizer = optim.optimizer(settings, 10)
    task = frozen(linear_task.TASK, settings)
    before = linear_task.init(jax.random.key(0))

    def loss(params, batch):
        return sum(task.loss(params, batch, None)[n][0] for n in task.terms)

    @jax.jit
    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    params, state = before, optimizer.init(before)
    for seed in range(3):
        params, state = step(params, state, linear_task.batch(seed))
    share = jax.tree.map(lambda a, b: np.asarray(a != b), params, before)
    return {
        name: leaf.reshape(N, -1).mean(1) if name.startswith("layers/") else leaf.mean()
        for name, leaf in tree.flatten(share).items()
    }


def test_frozen_layers_stay_bit_for_bit_and_others_move():
    found = changed(freeze_layers=2)
    for name, share in found.items():
        if name.startswith("layers/"):
            assert (share[:2] == 0).all() and (share[2:] > 0.9).all(), name
        else:
            assert (share == 0) if name.startswith("embeddings/") else share > 0.9, name


def test_frozen_paths_stay_bit_for_bit_and_others_move():
    found = changed(freeze="embeddings|mlp/.*kernel")
    for name, share in found.items():
        still = name.startswith("embeddings/") or name.endswith(
            ("up/kernel", "down/kernel")
        )
        assert (share == 0).all() if still else (share > 0.9).all(), name


def test_nothing_is_computed_for_the_gradient_of_a_frozen_encoder():
    def products(settings):
        task = frozen(linear_task.TASK, settings)

        def loss(params, batch):
            return sum(task.loss(params, batch, None)[n][0] for n in task.terms)

        made = jax.jit(jax.grad(loss)).lower(linear_task.structs(), linear_task.batch())
        return made.as_text().count("stablehlo.dot_general")

    # A matrix product has two more for its gradients; what is left are the heads'.
    assert products(config.Optim(freeze="layers|emb")) < products(config.Optim()) / 2


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"freeze": "encoder"}, ["config.optim.freeze=encoder", "layers/mlp"]),
        ({"freeze_layers": N + 1}, ["config.optim.freeze_layers=5", "4 layers"]),
        ({"freeze": "."}, ["nothing to be trained"]),
    ],
)
def test_a_useless_pattern_is_refused(edits, words):
    with pytest.raises(UserError) as caught:
        frozen(linear_task.TASK, config.Optim(**edits))
    assert all(word in str(caught.value) for word in words), caught.value
