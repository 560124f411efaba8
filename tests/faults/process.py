"""`bert-jax train`, with a fault planned in the environment.

FAULT is JSON: {"process": 1, "batch": 12, "do": "raise"} makes that process raise
when its main thread takes its twelfth batch of training; "place" in place of "batch"
names another place. The file MARK is made when it happens.
"""

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

# Faster to start: a plain thread reads, and TensorBoard's writer has no use for torch.
sys.modules["tensorflow"] = sys.modules["torch"] = None  # type: ignore

from bert_jax import checkpoint, distributed, evaluate, run, train  # noqa: E402
from bert_jax.__main__ import main  # noqa: E402
from bert_jax.data import device  # noqa: E402

PLAN = json.loads(os.environ.get("FAULT", "null")) or {}
MINE = PLAN.get("process") in (None, int(os.environ.get("JAX_PROCESS_INDEX", 0)))


def happen(batch=None):
    Path(os.environ["MARK"]).touch()
    do = PLAN["do"]
    if do == "raise":
        raise ZeroDivisionError("planned")
    if do == "sleep":
        time.sleep(PLAN["seconds"])
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "nan":
        weight = np.where(batch["mlm_weight"] > 0, np.nan, 0.0)
        batch["mlm_weight"] = weight.astype(np.float32)


def at(place, module, name):
    """The fault happens when this function is called for the first time."""
    function, calls = getattr(module, name), itertools.count(1)

    def faulty(*args, **more):
        if next(calls) == 1:
            happen()
        return function(*args, **more)

    if MINE and place == PLAN.get("place"):
        setattr(module, name, faulty)


prefetch, numbers = device.prefetch, itertools.count(1)


def in_batch(batches, *more):
    """`prefetch`; the fault happens in one of the batches."""

    def broken():
        for batch in batches:
            if next(numbers) == PLAN["batch"]:
                happen(batch)
            yield batch

    return prefetch(broken(), *more)


if MINE and "batch" in PLAN:
    device.prefetch = in_batch
at("start", run, "open_store")
at("compile", train.device, "prefetch")
at("evaluate", evaluate.metrics, "add")
at("save", checkpoint, "_floats")
distributed._START = PLAN.get("start_seconds", distributed._START)
if PLAN.get("do") == "differ" and os.environ["JAX_PROCESS_INDEX"] == "1":
    sys.argv.append("--config.optim.peak_rate=0.5")

if __name__ == "__main__":
    sys.exit(main())
