"""The training state and the two functions that are compiled: train and evaluate."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bert_jax import sharding, tree
from bert_jax.tasks import Task

Batch = dict[str, Any]
Pairs = dict[str, tuple[jax.Array, jax.Array]]


class TrainState(NamedTuple):
    """All that one step hands to the next, and all that a checkpoint holds."""

    step: Any  # int32 [], updates done so far
    params: Any
    opt_state: Any


def _init(
    task: Task, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[], TrainState]:
    def init() -> TrainState:
        # No step folds in this number, so that dropout shares no key with it.
        rng = jax.random.fold_in(jax.random.key(seed), 2**32 - 1)
        params = task.init(rng)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return init


def abstract_state(
    task: Task, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without allocating any of it.

    Args:
      task: gives the parameters.
      optimizer: gives the moments, which are cut like their parameters.
      mesh: from `sharding.make_mesh`.

    Returns:
      TrainState of `jax.ShapeDtypeStruct` with `.sharding` set, as a restore needs.

    Raises:
      UserError: the parameters do not fit the rules or the mesh.
    """
    shapes = jax.eval_shape(_init(task, optimizer, 0))
    params = sharding.param_shardings(mesh, shapes.params)
    by_name = tree.flatten(params)

    def moment(name: str, leaf: Any) -> jax.sharding.NamedSharding:
        parts = name.split("/")
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        known = next((by_name[tail] for tail in tails if tail in by_name), None)
        if known is None and leaf.ndim:
            raise ValueError(f"optimizer state {name} {leaf.shape} has no sharding")
        return known or sharding.replicated(mesh)

    shardings = TrainState(
        sharding.replicated(mesh), params, tree.map_named(moment, shapes.opt_state)
    )
    return sharding.placed(shapes, shardings)


def state_shardings(
    task: Task, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """TrainState of `NamedSharding`; arguments and errors of `abstract_state`."""
    state = abstract_state(task, optimizer, mesh)
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def init_state(
    task: Task, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int
) -> TrainState:
    """The state before the first step, born in pieces on its devices.

    Args:
      task: gives the initial parameters.
      optimizer: gives the initial moments.
      mesh: from `sharding.make_mesh`.
      seed: `config.seed`; the values do not depend on the mesh.

    Returns:
      TrainState of arrays; no device ever holds more than its share.

    Raises:
      UserError: the parameters do not fit the rules or the mesh.
    """
    shardings = state_shardings(task, optimizer, mesh)
    return jax.jit(_init(task, optimizer, seed), out_shardings=shardings)()


def _at_least_something(weight: jax.Array) -> jax.Array:
    """The weight to divide by: a batch without any target gives 0, not NaN."""
    return jnp.where(weight > 0, weight, 1.0)


def _split(batch: Batch, count: int, mesh: Mesh) -> Batch:
    """[B, ...] -> [count, B / count, ...], micro-batch i taking rows i, i + count...

    Taken this way, and not as contiguous blocks, rows never leave their device.
    """

    def one(rows: jax.Array) -> jax.Array:
        groups = rows.reshape(rows.shape[0] // count, count, *rows.shape[1:])
        return jax.lax.with_sharding_constraint(
            jnp.swapaxes(groups, 0, 1), sharding.micro_batch_sharding(mesh)
        )

    return jax.tree.map(one, batch)


def _gradients(
    task: Task,
    params: Any,
    batch: Batch,
    rng: jax.Array,
    given: tuple[Any, ...],
    totals: Any = None,
) -> tuple[Any, Pairs]:
    """Gradient of sum_terms(sum / total weight); totals None: the batch's own."""

    def objective(params: Any) -> tuple[jax.Array, Pairs]:
        pairs = task.loss(params, batch, rng, *given)
        weights = {name: pairs[name][1] for name in task.terms}
        over = weights if totals is None else totals
        parts = {n: pairs[n][0] / _at_least_something(over[n]) for n in task.terms}
        return task.total(parts), pairs

    gradients, pairs = jax.grad(objective, has_aux=True)(params)
    return gradients, pairs


def _accumulated_gradients(
    task: Task,
    params: Any,
    batch: Batch,
    rng: jax.Array,
    given: tuple[Any, ...],
    count: int,
    mesh: Mesh,
) -> tuple[Any, Pairs]:
    """The same over micro-batches, each divided by the whole batch's weights."""
    # Only the weights are used, which depend on the batch alone: the compiler
    # drops the forward pass.
    whole = task.loss(params, batch, None, *given)
    totals = {name: whole[name][1] for name in task.terms}

    def add(carry: Any, item: Any) -> tuple[Any, None]:
        index, micro = item
        own = jax.random.fold_in(rng, index)
        new = _gradients(task, params, micro, own, given, totals)
        return jax.tree.map(jnp.add, carry, new), None

    zeros = jax.tree.map(jnp.zeros_like, (params, whole))
    items = jnp.arange(count), _split(batch, count, mesh)
    total, _ = jax.lax.scan(add, zeros, items)
    return total


def _on(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, traced where `sharding.hold_rows` sees the mesh."""

    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    seed: int,
    accumulate: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles one update: gradient, optimizer, metrics.

    The loss is normalised by the weights of the whole batch, over all devices and
    micro-batches, so that neither changes the result. Dropout is a function of
    (seed, step, micro-batch). Values that are not finite are reported, not hidden.

    Args:
      task: what to learn.
      optimizer: from `optim.optimizer`.
      schedule: from `optim.learning_rate`, for reporting.
      mesh: from `sharding.make_mesh`.
      seed: `config.seed`.
      accumulate: micro-batches that a batch is worked through in; it and the
        devices that share a batch must divide the rows (`sharding.check_batch`).

    Returns:
      Function (state, batch, *task.given) -> (state, metrics), which consumes the
      state and nothing else. Metrics are float32 []: `loss`, the ratio of each of the
      task's pairs, `grad_norm` before clipping, `learning_rate`.
    """

    def train_step(
        state: TrainState, batch: Batch, *given: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        if accumulate == 1:
            gradients, pairs = _gradients(task, state.params, batch, rng, given)
        else:
            gradients, pairs = _accumulated_gradients(
                task, state.params, batch, rng, given, accumulate, mesh
            )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            name: total / _at_least_something(weight)
            for name, (total, weight) in pairs.items()
        }
        metrics["loss"] = task.total(metrics)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        return TrainState(state.step + 1, params, opt_state), metrics

    shardings = state_shardings(task, optimizer, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, task.given)
    return jax.jit(
        _on(mesh, train_step),
        in_shardings=(shardings, sharding.batch_sharding(mesh), *places),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def make_eval_step(task: Task, mesh: Mesh) -> Callable[[Any, Batch], Pairs]:
    """Compiles the scoring of one batch, without dropout.

    Args:
      task: what to score.
      mesh: from `sharding.make_mesh`.

    Returns:
      Function (params, batch) -> the task's pairs (sum, weight), float32 [], over
      the whole batch; add them up over batches and divide once, at the end.
    """

    def eval_step(params: Any, batch: Batch) -> Pairs:
        return task.loss(params, batch, None)

    return _reader(eval_step, task, mesh)


def make_score_step(
    task: Task, mesh: Mesh
) -> Callable[[Any, Batch], tuple[Pairs, Batch]]:
    """Compiles both scoring and predicting a batch: the encoder runs once, not twice.

    Args:
      task: with `predict`.
      mesh: from `sharding.make_mesh`.

    Returns:
      Function (params, batch) -> what `make_eval_step` and `make_predict_step` give.
    """

    def score_step(params: Any, batch: Batch) -> tuple[Pairs, Batch]:
        return task.loss(params, batch, None), task.predict(params, batch)

    return _reader(score_step, task, mesh)


def make_predict_step(task: Task, mesh: Mesh) -> Callable[[Any, Batch], Batch]:
    """Compiles `task.predict`: (params, batch) -> logits, whole on every device."""
    return _reader(task.predict, task, mesh)


def _reader(
    function: Callable[[Any, Batch], Any], task: Task, mesh: Mesh
) -> Callable[[Any, Batch], Any]:
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return jax.jit(
        _on(mesh, function),
        in_shardings=(
            sharding.param_shardings(mesh, shapes),
            sharding.batch_sharding(mesh),
        ),
        out_shardings=sharding.replicated(mesh),
    )
