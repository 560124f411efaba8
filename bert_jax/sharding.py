"""The one file that knows the mesh: which array is cut along which devices.

Every parameter has one rule, path -> logical axes, and every logical axis one mesh
axis. There is no catch-all: a parameter that nobody thought of is an error, not a
silent copy on every device.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bert_jax import config, tree
from bert_jax.errors import UserError


class Rule(NamedTuple):
    """Logical axes of the parameters whose whole path matches.

    A path is that without `generator/`, for a generator has the discriminator's parts.
    """

    pattern: str
    axes: tuple[str | None, ...]
    optional: bool = False  # of a part that some models do not have


# The first match counts. Vectors over the hidden features stay whole everywhere:
# they are small, and cutting them would cost a gather at each use.
RULES: tuple[Rule, ...] = (
    Rule(r"embeddings/token", ("vocab", "embed")),
    Rule(r"embeddings/(position|segment)", (None, "embed"), optional=True),
    Rule(r"(embeddings/)?norm/(scale|bias)", (None,)),
    Rule(r"project/kernel", (None, "embed"), optional=True),
    Rule(r"project/bias", (None,), optional=True),
    Rule(
        r"layers/attention/(query|key|value)/kernel",
        ("layers", "embed", "heads", None),
        optional=True,
    ),
    Rule(
        r"layers/attention/(query|key|value)/bias",
        ("layers", "heads", None),
        optional=True,
    ),
    Rule(
        r"layers/attention/out/kernel",
        ("layers", "heads", None, "embed"),
        optional=True,
    ),
    Rule(r"layers/mlp/(up|gate)/kernel", ("layers", "embed", "mlp")),
    Rule(r"layers/mlp/(up|gate)/bias", ("layers", "mlp")),
    Rule(r"layers/mlp/down/kernel", ("layers", "mlp", "embed")),
    Rule(r"layers/(attention/out|mlp/down)/bias", ("layers", None)),
    Rule(r"layers/((attention|mlp)/)?norm/(scale|bias)", ("layers", None)),
    Rule(r"layers/mamba/in/kernel", ("layers", "embed", None, "mlp"), optional=True),
    Rule(r"layers/mamba/in/bias", ("layers", None, "mlp"), optional=True),
    Rule(
        r"layers/mamba/(conv|step|rate_log)",
        ("layers", None, None, "mlp"),
        optional=True,
    ),
    Rule(
        r"layers/mamba/(conv_bias|step_bias|skip)",
        ("layers", None, "mlp"),
        optional=True,
    ),
    Rule(r"layers/mamba/select", ("layers", None, "mlp", None), optional=True),
    Rule(r"layers/mamba/out/kernel", ("layers", "mlp", "embed"), optional=True),
    Rule(r"layers/(mamba|lstm)/out/bias", ("layers", None), optional=True),
    Rule(
        r"layers/lstm/states/input",
        ("layers", "embed", None, None, None),
        optional=True,
    ),
    Rule(
        r"layers/lstm/states/recurrent",
        ("layers", None, "embed", None, None),
        optional=True,
    ),
    Rule(r"layers/lstm/states/bias", ("layers", None, None, None), optional=True),
    Rule(r"layers/lstm/out/kernel", ("layers", None, "embed"), optional=True),
    Rule(r"(sbo/)?mlm/bias", ("vocab",), optional=True),
    Rule(r"(mlm|sbo|sbo/mlm)/norm/(scale|bias)", (None,), optional=True),
    Rule(
        r"((sbo/)?mlm/transform|sbo/first|pooler|nsp|head|rtd/(transform|out))/kernel",
        ("embed", None),
        optional=True,
    ),
    Rule(
        r"((sbo/)?mlm/transform|sbo/first|pooler|nsp|head|rtd/(transform|out))/bias",
        (None,),
        optional=True,
    ),
    Rule(r"sbo/offset", (None, "embed"), optional=True),
    Rule(r"distill/(embeddings|layers)/kernel", ("embed", None), optional=True),
    Rule(r"lstm/layer_\d+/input", ("embed", None, None, None), optional=True),
    # Whole: each position's product would gather it anew.
    Rule(r"lstm/layer_\d+/recurrent", (None,) * 4, optional=True),
    Rule(r"lstm/layer_\d+/bias", (None,) * 3, optional=True),
    Rule(r"mix/weight", (None,), optional=True),
    Rule(r"mix/scale", (), optional=True),
)

MESH_AXIS = {  # of each logical axis; None is not cut
    "vocab": "model",
    "heads": "model",
    "mlp": "model",
    "embed": "fsdp",
    "layers": None,
}
_FIELD = {  # of the config, which decides the size of a logical axis
    "vocab": "config.model.vocab_multiple",
    "heads": "config.model.heads",
    "mlp": "config.model.mlp, or of a Mamba mixer config.model.hidden",
    "embed": "config.model.hidden, embedding, or of an LSTM config.task.lstm_hidden",
}
_BATCH_AXES = ("data", "fsdp")


def make_mesh(
    settings: config.Mesh, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """Arranges the devices along the axes `data`, `fsdp` and `model`.

    Args:
      settings: the `mesh` group of the config; -1 takes all the devices that the
        other axes leave.
      devices: all devices of all processes when None.

    Returns:
      The mesh, with axes that the compiler may propagate shardings along.

    Raises:
      UserError: the axes do not use every device exactly once.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [settings.data, settings.fsdp, settings.model]
    text = f"data={sizes[0]}, fsdp={sizes[1]}, model={sizes[2]}"
    fixed = math.prod(size for size in sizes if size != -1)
    verb = "must divide" if -1 in sizes else "must be"
    sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"config.mesh: {text} asks for {fixed} devices in the axes that are "
            f"given, which {verb} the {len(devices)} there are; set "
            "config.mesh.data=-1 to use the rest"
        )
    return jax.make_mesh(
        tuple(sizes),
        ("data", "fsdp", "model"),
        axis_types=(AxisType.Auto,) * 3,
        devices=devices,
    )


def nearest_mesh(settings: config.Mesh, count: int, shapes: Any) -> config.Mesh:
    """Return the sizes of the mesh that is most like another one.

    A model that is cut over some devices is cut over as many here, or else over the
    largest smaller number that its sizes allow; copies take the devices that are left.

    Args:
      settings: sizes of the mesh of a run, of which one may be -1, the rest.
      count: number of devices.
      shapes: parameters, nested dict of `jax.ShapeDtypeStruct`.

    Returns:
      Sizes without -1, of at most `count` devices.
    """
    data, fsdp, model = settings.data, settings.fsdp, settings.model
    if fsdp == -1:
        fsdp = max(count // (data * model), 1)
    if model == -1:
        model = max(count // (data * fsdp), 1)

    def likeness(sizes: tuple[int, int]) -> tuple[int, ...]:
        shards = math.prod(sizes)
        return shards, count // shards * shards, sizes[1] == model, sizes[0]

    cuts = [(f, m) for m in range(1, count + 1) for f in range(1, count // m + 1)]
    cuts = [cut for cut in cuts if math.prod(cut) <= fsdp * model]
    for f, m in sorted(cuts, key=likeness, reverse=True):
        if _fits(shapes, {"fsdp": f, "model": m}):
            return config.Mesh(count // (f * m), f, m)
    return config.Mesh(count, 1, 1)


def _fits(shapes: Any, sizes: dict[str, int]) -> bool:
    """Return whether the sizes of mesh axes divide all that they cut."""
    for name, leaf in tree.flatten(shapes).items():
        rule = _rule(name)
        for size, axis in zip(leaf.shape, rule.axes if rule else (), strict=False):
            mesh_axis = MESH_AXIS[axis] if axis else None
            if mesh_axis and size % sizes[mesh_axis]:
                return False
    return True


def _rule(name: str) -> Rule | None:
    own = name.removeprefix("generator/")
    return next((r for r in RULES if re.fullmatch(r.pattern, own)), None)


def param_shardings(mesh: jax.sharding.Mesh, shapes: Any) -> Any:
    """How each parameter is cut, found before any of them is allocated.

    Args:
      mesh: from `make_mesh`.
      shapes: nested dict of `jax.ShapeDtypeStruct` (or of arrays).

    Returns:
      The same tree of `NamedSharding`.

    Raises:
      UserError: lists at once every parameter without a rule, every rule without a
        parameter, and every size that its mesh axis does not divide.
    """
    faults: list[str] = []
    unused = {rule.pattern for rule in RULES if not rule.optional}

    def one(name: str, leaf: Any) -> NamedSharding:
        rule = _rule(name)
        if rule is None:
            faults.append(f"{name} {leaf.shape}: no rule in bert_jax/sharding.py RULES")
            return NamedSharding(mesh, PartitionSpec())
        unused.discard(rule.pattern)
        faults.extend(_size_faults(mesh, name, leaf.shape, rule.axes))
        axes = [MESH_AXIS[axis] if axis else None for axis in rule.axes]
        return NamedSharding(mesh, PartitionSpec(*axes))

    shardings = tree.map_named(one, shapes)
    faults += [
        f"rule {rule.pattern!r} in bert_jax/sharding.py RULES matches no parameter"
        for rule in RULES
        if rule.pattern in unused
    ]
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"the parameters do not fit the mesh:\n{lines}")
    return shardings


def placed(shapes: Any, shardings: Any) -> Any:
    """Shapes of arrays that know where these are to lie.

    Args:
      shapes: tree of `jax.ShapeDtypeStruct`.
      shardings: the same tree of shardings.

    Returns:
      The same tree of `jax.ShapeDtypeStruct`, as a restore needs them.
    """
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        shapes,
        shardings,
    )


def _size_faults(
    mesh: jax.sharding.Mesh,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
) -> list[str]:
    if len(shape) != len(axes):
        return [f"{name} {shape}: its rule names {len(axes)} axes: {axes}"]
    faults = []
    for size, axis in zip(shape, axes, strict=True):
        mesh_axis = MESH_AXIS[axis] if axis else None
        if axis and mesh_axis and size % mesh.shape[mesh_axis]:
            faults.append(
                f"{name} {shape}: size {size} of axis {axis!r} is not divisible by "
                f"config.mesh.{mesh_axis}={mesh.shape[mesh_axis]}; change it or "
                f"{_FIELD[axis]}"
            )
    return faults


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp` together; for every array of a batch."""
    return NamedSharding(mesh, PartitionSpec(_BATCH_AXES))


def micro_batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The same for batches stacked on a leading axis of micro-batches."""
    return NamedSharding(mesh, PartitionSpec(None, _BATCH_AXES))


def hold_rows(x: jax.Array) -> jax.Array:
    """Keeps an activation cut by its rows, as the batch is, and by nothing else.

    Without this the compiler cuts activations along the features of parameters that
    `fsdp` cuts there, and gathers the rows: it then sends activations around, which
    grow with the batch, and not parameters.

    Args:
      x: [B, ...], in a function traced with `jax.sharding.use_abstract_mesh`; in any
        other nothing is done.

    Returns:
      x.
    """
    return _constrain(x, _BATCH_AXES)


def hold_whole(x: jax.Array) -> jax.Array:
    """Gathers a parameter once, before a loop that would at every turn.

    Args:
      x: any shape, as for `hold_rows`.

    Returns:
      x.
    """
    return _constrain(x)


def hold_looked_up(x: jax.Array) -> jax.Array:
    """The same for rows of a table whose features `fsdp` cuts: in two moves.

    First cut as the table is, then by rows, which is one all-to-all. Left to itself
    the compiler looks up the rows of all devices on each of them.

    Args:
      x: [B, L, D], as for `hold_rows`.

    Returns:
      x.
    """
    return _constrain(_constrain(x, "data", None, MESH_AXIS["embed"]), _BATCH_AXES)


def _constrain(x: jax.Array, *axes: Any) -> jax.Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def device_kind() -> str:
    """Of the devices that a function is traced for, as JAX names it: `TPU v5 lite`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device or jax.devices()[0]).device_kind


def by_rows_and_heads(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Lets each device attend within its own rows and heads, for a kernel of its own.

    The compiler cannot cut a kernel that somebody else has written.

    Args:
      attend: function (query, key, value, example, words) of [B, L, H, h], int32 [B, L]
        and uint32 [B, H, 2] or None to [B, L, H, h], called in a function traced with
        `use_abstract_mesh`; in any other it is left as it is.

    Returns:
      The same function of whole arrays.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return attend
    heads = PartitionSpec(_BATCH_AXES, None, MESH_AXIS["heads"])
    own = PartitionSpec(_BATCH_AXES, MESH_AXIS["heads"])
    specs = (heads, heads, heads, PartitionSpec(_BATCH_AXES), own)

    return jax.shard_map(attend, in_specs=specs, out_specs=heads, check_vma=False)


def by_rows_and_channels(scan: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Lets each device scan its own rows and channels, which do not meet in a scan.

    The compiler would add gradients up over the channels at every position.

    Args:
      scan: `selective_scan` of model/mamba.py, called as `attend` above.

    Returns:
      The same function of whole arrays.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return scan
    rows = PartitionSpec(None, None, _BATCH_AXES)
    channels = PartitionSpec(None, None, _BATCH_AXES, MESH_AXIS["mlp"])
    rate = PartitionSpec(None, None, MESH_AXIS["mlp"])
    specs = (channels, channels, rows, rows, rate, rows)
    return jax.shard_map(scan, in_specs=specs, out_specs=channels, check_vma=False)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A whole copy on every device; for scalars."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: jax.sharding.Mesh, phase: config.Phase, index: int) -> None:
    """Every device must get equally many rows of each micro-batch.

    Args:
      mesh: from `make_mesh`.
      phase: one phase of the run.
      index: its place in `config.phases`, for the message.

    Raises:
      UserError: the rows do not divide; the message names a batch that would.
    """
    data, fsdp = (mesh.shape[axis] for axis in _BATCH_AXES)
    unit = data * fsdp * phase.accumulate
    if phase.batch % unit:
        nearest = max(round(phase.batch / unit), 1) * unit
        raise UserError(
            f"config.phases[{index}].batch={phase.batch}: must be a multiple of "
            f"accumulate={phase.accumulate} times the devices that share a batch, "
            f"config.mesh data={data} * fsdp={fsdp}; {nearest} would do"
        )
