"""The parts of an encoder: their names, their order, and how deep a parameter lies."""

from collections.abc import Iterable

from bert_jax.config import Model

# In the order of the forward pass. `project` maps embeddings of another width onto the
# layers; `norm` is the last norm of an encoder whose sublayers have theirs in front.
ENCODER = ("embeddings", "project", "layers", "norm")
STACKED = "layers"  # all layers along the first axis of each parameter
_GENERATOR = "generator/"  # an encoder of its own, with the same parts


def of_encoder(model: Model) -> tuple[str, ...]:
    """Return the parts that an encoder of these sizes has, in order."""
    lacking = set()
    if model.embedding_width == model.hidden:
        lacking.add("project")
    if model.norm == "post":
        lacking.add("norm")
    return tuple(part for part in ENCODER if part not in lacking)


def part(name: str) -> str:
    """Return the part that a parameter belongs to: its first name, as in `mlm/bias`."""
    return name.split("/")[0]


def in_encoder(name: str) -> bool:
    """Return whether a parameter belongs to the encoder, and not to a head."""
    return part(name) in ENCODER


def stacked(name: str) -> bool:
    """Return whether the first axis of a parameter counts layers, or their groups."""
    return part(name.removeprefix(_GENERATOR)) == STACKED


def depth(name: str, layers: int) -> int | None:
    """Return how far above the input a parameter lies; None: each layer has its own.

    Args:
      name: path of the parameter.
      layers: number of layers, or of groups that share their parameters.

    Returns:
      0 for what is below the first layer, `layers` for the norm after the last one,
      and `layers` + 1 for heads; layer i, from 0, lies at depth i + 1.
    """
    own = part(name.removeprefix(_GENERATOR))
    if own == STACKED:
        return None
    known = {"embeddings": 0, "project": 0, "norm": layers}
    return known.get(own, layers + 1)


def pattern(names: Iterable[str] = ENCODER) -> str:
    """Return a regular expression of the paths of the parameters of some parts."""
    return f"^({'|'.join(names)})/"
