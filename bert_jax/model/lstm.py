"""A bidirectional LSTM over rows in which several examples are packed.

Axis letters beside those of `layers`: R direction, G gate, U units of a direction.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt32

from bert_jax.config import Model
from bert_jax.model.directions import directions, goes_on
from bert_jax.model.layers import Dense
from bert_jax.model.products import add_bias, linear, product
from bert_jax.sharding import hold_whole

# Of one gate's matrix, whatever other directions and gates lie beside it.
_INPUT = nn.initializers.variance_scaling(
    1.0, "fan_avg", "uniform", in_axis=0, out_axis=3, batch_axis=(1, 2)
)
_RECURRENT = nn.initializers.variance_scaling(
    1.0, "fan_avg", "uniform", in_axis=1, out_axis=3, batch_axis=(0, 2)
)


class BiLSTM(nn.Module):
    """LSTM layers that read each example forwards and backwards.

    Every layer reads both directions of the one below. No state crosses from one
    example to another, so packed ones give what each would give alone.

    Attributes:
      units: features of the state of each direction.
      layers: one upon the other.

    Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; both
    directions as in Graves and Schmidhuber 2005, section 3.
    """

    units: int
    layers: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L _"], example: Int32[Array, "B L"]
    ) -> Float[Array, "B L RU"]:
        """Mixes the positions of each example.

        Args:
          x: floating; products are computed in its dtype, states in float32.
          example: number of the example at each position; 0 is padding.

        Returns:
          x.dtype [B, L, 2 * units], forwards first; zeros at padding.
        """
        same = goes_on(directions(example.T))
        y = jnp.swapaxes(x, 0, 1)
        for i in range(self.layers):
            y = _Layer(self.units, name=f"layer_{i}")(y, same)
        return jnp.where((example > 0)[:, :, None], jnp.swapaxes(y, 0, 1), 0)


class LSTM(nn.Module):
    """A mixer: one LSTM in each direction, of D units, then a map of both to D.

    The BiLSTM on top of a left-to-right model in Devlin et al. 2019, table 5, has no
    stated size. D units in each direction is that of the ones in their section 5.3;
    states wider than what is passed on, through a linear map, are as in Peters et al.
    2018 (ELMo), section 3.4, where the map is a part of each direction.
    """

    config: Model

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        example: Int32[Array, "B L"],
        words: UInt32[Array, "sites 2"] | None,
    ) -> Float[Array, "B L D"]:
        """Mixes the positions of each example; no dropout site.

        Args:
          x: floating; products are computed in its dtype, states in float32.
          example: number of the example at each position; 0 is padding.
          words: not used.

        Returns:
          As x; zeros at padding.
        """
        del words
        units = self.config.hidden
        same = goes_on(directions(example.T))
        y = _Layer(units, name="states")(jnp.swapaxes(x, 0, 1), same)
        y = Dense(self.config, (units,), name="out")(jnp.swapaxes(y, 0, 1))
        return jnp.where((example > 0)[:, :, None], y, 0)


class _Layer(nn.Module):
    """One layer; gates in the order input, forget, cell, output."""

    units: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "L B _"], same: Bool[Array, "L R B"]
    ) -> Float[Array, "L B RU"]:
        """Reads x, whose example goes on at a position where `same` says so."""
        units = self.units
        shape = x.shape[-1], 2, 4, units
        kernel = self.param("input", _INPUT, shape, jnp.float32)
        shape = 2, units, 4, units
        recurrent = self.param("recurrent", _RECURRENT, shape, jnp.float32)
        bias = self.param("bias", _remember, (2, 4, units), jnp.float32)
        y = add_bias(linear(1, x.dtype, x, kernel), bias)
        y = jnp.stack([y[:, :, 0], y[::-1, :, 1]], 1)
        recurrent = hold_whole(recurrent.astype(x.dtype))
        state = _recur(y, recurrent, same).astype(x.dtype)
        return jnp.concatenate([state[:, 0], state[::-1, 1]], -1)


def _remember(rng: jax.Array, shape: tuple[int, ...], dtype: type) -> jax.Array:
    """Zeros, but 1 for forget gates: Jozefowicz et al. 2015, section 2.2."""
    del rng
    return jnp.zeros(shape, dtype).at[:, 1].set(1)


def _scan(x, kernel, same):
    """States float32 [L, R, B, U] from what the input adds to the gates."""

    def step(state, now):
        added, goes_on = now
        output, cell = (jnp.where(goes_on[:, :, None], s, 0) for s in state)
        gates = added + product(
            "RBU,RUGV->RBGV", output, kernel, kernel.dtype, jnp.float32
        )
        take, keep, new, show = (gates[:, :, i] for i in range(4))
        cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(take) * jnp.tanh(new)
        output = jax.nn.sigmoid(show) * jnp.tanh(cell)
        return (output, cell), output

    _, directions, batch, _, units = x.shape
    zeros = jnp.zeros((directions, batch, units), jnp.float32)
    return jax.lax.scan(step, (zeros, zeros), (x, same))[1]


_recur = jax.custom_vjp(_scan)


def _recur_forward(x, kernel, same):
    states, back = jax.vjp(lambda x: _scan(x, kernel, same), x)
    return states, (back, states, kernel, same)


def _recur_backward(kept, gradient):
    """The kernel's gradient as one product, where autodiff adds one up per position."""
    back, states, kernel, same = kept
    (x_gradient,) = back(gradient)
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
    before = jnp.where(same[..., None], before, 0).astype(kernel.dtype)
    kernel_gradient = product(
        "LRBU,LRBGV->RUGV", before, x_gradient, kernel.dtype, jnp.float32
    )
    return x_gradient, kernel_gradient.astype(kernel.dtype), None


_recur.defvjp(_recur_forward, _recur_backward)
