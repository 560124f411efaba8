"""Weak scaling of BERT-mini's training step on 1, 2, 4 and 8 fake CPU devices.

The work of a device is the same everywhere: 4 rows of 128 tokens. Collectives are read
from the compiled step and compared with a formula; `formula` says where each term
comes from. Seconds are processor time of all threads, divided by the devices: as long
as devices share cores, it is what a device costs, and equal where scaling is perfect.

Command: python benchmarks/scaling.py [--steps=5]
Prints a Markdown table, then one JSON object.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np

from bert_jax import optim, program, sharding, step, tree
from bert_jax.config import Config, Mesh, Phase
from bert_jax.config.presets import model
from bert_jax.data import device, pipeline
from bert_jax.model.encoder import padded_vocabulary
from bert_jax.tasks.pretrain import pretrain

ROWS, LENGTH = 4, 128  # of a device
MESHES = (
    (1, 1, 1),
    *((n, 1, 1) for n in (2, 4, 8)),
    *((1, n, 1) for n in (2, 4, 8)),
    *((1, 1, n) for n in (2, 4)),
    (2, 1, 4),  # BERT-mini has 4 heads
    (2, 4, 1),
    (2, 2, 2),
)


def formula(config: Config, mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Elements that each kind of collective should move in a step, on one device.

    A CPU has no reduce-scatter: the gradients of cut parameters are reduced whole.

    Args:
      config: of the run.
      mesh: of its devices.

    Returns:
      kind -> elements of the arrays that are reduced or gathered.
    """
    data, fsdp, parts = (mesh.shape[name] for name in ("data", "fsdp", "model"))
    task = pretrain(config.model, config.objective)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    places = tree.flatten(sharding.param_shardings(mesh, shapes))
    sizes = {  # of the share of one part of `model`, whole along `fsdp`
        name: leaf.size // (parts if "model" in places[name].spec else 1)
        for name, leaf in tree.flatten(shapes).items()
    }
    token = sizes["embeddings/token"]
    cut = {name: size for name, size in sizes.items() if "fsdp" in places[name].spec}
    rows, width = config.phases[0].batch // (data * fsdp), config.model.hidden
    activation = rows * LENGTH * width
    found = {"all-reduce": 0, "all-gather": 0, "all-to-all": 0}
    if data * fsdp > 1:
        # Each gradient once; of the tied token table that of the output layer, and
        # below that of the lookup, which is made elsewhere.
        found["all-reduce"] += sum(sizes.values())
    if data > 1:
        found["all-reduce"] += token // fsdp
    if fsdp > 1:
        layers = sum(size for name, size in cut.items() if name.startswith("layers/"))
        heads = sum(
            size
            for name, size in cut.items()
            if not name.startswith(("layers/", "embeddings/"))
        )
        # Layers forward and backward; the output layer's stay for the backward pass.
        found["all-gather"] += 2 * layers + heads + token
        # The lookup, cut by features, to rows and back; with `data` in two moves.
        found["all-to-all"] += (2 if data == 1 else 4) * activation
        if data > 1:
            # Slices of gradients, once more over `data`.
            found["all-reduce"] += sum(cut.values()) // fsdp
    if parts > 1:
        # Forward: after attention and after the MLP. Backward: before the MLP and
        # before each of query, key and value. And the lookup, cut by vocabulary.
        found["all-reduce"] += (6 * config.model.layers + 1) * activation
    return found


def measure(sizes: tuple[int, int, int], steps: int) -> dict:
    """Compiles and runs the step on one mesh."""
    count = int(np.prod(sizes))
    batch_rows = ROWS * count
    config = Config(
        model=model("mini"),
        phases=(Phase(length=LENGTH, batch=batch_rows),),
        mesh=Mesh(*sizes),
    )
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:count])
    task = pretrain(config.model, config.objective)
    optimizer = optim.optimizer(config.optim, config.steps)
    schedule = optim.learning_rate(config.optim, config.steps)
    arrays = {
        name: np.ones(shape, dtype)
        for name, (shape, dtype) in pipeline.shapes(config, 0).items()
    }
    batch = device.to_device(arrays, sharding.batch_sharding(mesh))
    state = step.init_state(task, optimizer, mesh, 0)
    make = step.make_train_step
    train_step = make(task, optimizer, schedule, mesh, 0)
    compiled = train_step.lower(state, batch).compile()  # pyright: ignore
    found = program.read(compiled.as_text())
    seconds = []
    for _ in range(steps + 1):
        began = time.process_time()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append((time.process_time() - began) / count)
    kinds: dict[str, dict[str, int]] = {}
    for one in found.collectives:
        total = kinds.setdefault(one.kind, {"count": 0, "elements": 0, "bytes": 0})
        total["count"] += one.times
        total["elements"] += one.times * one.elements
        total["bytes"] += one.times * one.bytes
    return {
        "mesh": sizes,
        "rows": batch_rows,
        "vocabulary": padded_vocabulary(config.model),
        "collectives": kinds,
        "predicted": formula(config, mesh),
        "seconds": statistics.median(seconds[1:]),
    }


def main() -> None:
    """Measures every mesh and prints measured beside predicted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    args = parser.parse_args()
    results = []
    print("| data x fsdp x model | kind | count | MB measured | MB predicted | s |")
    print("|---|---|---|---|---|---|")
    for sizes in MESHES:
        result = measure(sizes, args.steps)
        results.append(result)
        mesh, seconds = "x".join(map(str, sizes)), f"{result['seconds']:.3f}"
        kinds = result["collectives"] or {"none": dict.fromkeys(("count", "bytes"), 0)}
        for kind, total in kinds.items():
            wanted = 4 * result["predicted"].get(kind, 0) / 1e6
            print(
                f"| {mesh} | {kind} | {total['count']} | {total['bytes'] / 1e6:.1f} "
                f"| {wanted:.1f} | {seconds} |",
                flush=True,
            )
            mesh = seconds = ""
    print(json.dumps(results))


if __name__ == "__main__":
    main()
