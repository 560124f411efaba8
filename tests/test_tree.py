import jax
import jax.numpy as jnp

from bert_jax import tree
from bert_jax.step import TrainState


def test_names_are_paths():
    state = TrainState(0, {"mlm": {"bias": 1}}, ({"mu": 2}, 3))
    assert tree.flatten(state) == {
        "step": 0,
        "params/mlm/bias": 1,
        "opt_state/0/mu": 2,
        "opt_state/1": 3,
    }


def test_map_named_keeps_the_structure():
    nested = {"a": {"b": 1}, "c": (2, 3)}
    doubled = tree.map_named(lambda name, x, y: (name, x + y), nested, nested)
    assert doubled == {"a": {"b": ("a/b", 2)}, "c": (("c/0", 4), ("c/1", 6))}


def test_digest_sees_every_bit_name_shape_and_type():
    base = {"a": jnp.arange(6.0), "b": {"c": jnp.zeros(2)}}
    others = [
        {"a": jnp.arange(6.0).at[3].add(2e-7 * 3), "b": {"c": jnp.zeros(2)}},
        {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.zeros(2)}},
        {"a": jnp.arange(6.0), "b": {"d": jnp.zeros(2)}},
        {"a": jnp.arange(6.0), "b": {"c": jnp.zeros(2, jnp.int32)}},
        {"a": jnp.arange(6.0), "b": {"c": -jnp.zeros(2)}},
    ]
    digests = {tree.params_digest(params) for params in (base, *others)}
    assert len(digests) == 6
    again = {"b": {"c": jnp.zeros(2)}, "a": jax.device_put(jnp.arange(6.0))}
    assert tree.params_digest(again) == tree.params_digest(base)
