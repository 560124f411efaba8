"""Where the time of a run went, over all its restarts."""

import contextlib
import math
from pathlib import Path
from typing import Any

from bert_jax import log
from bert_jax.errors import UserError

KINDS = {  # of seconds, in the order of a table
    "training": "steps that the result is made of",
    "waiting": "for batches",
    "lost": "steps done again after a restart",
    "starting": "data, model and checkpoint, until the first step",
    "compiling": "the first step",
    "evaluating": "on the held-out set",
    "saving": "that training had to wait for",
    "down": "between the end of a process and the start of the next",
    "other": "what no event accounts for",
}
_EVENTS = {
    "start": "starting",
    "compile": "compiling",
    "evaluate": "evaluating",
    "save": "saving",
}


def account(workdir: str | Path) -> dict[str, Any]:
    """Adds up the events of a run.

    Args:
      workdir: the run directory, with its events.jsonl.

    Returns:
      `goodput`, the share of the time spent on steps that count; `seconds` from the
      first start to the last event; `restarts`; and the seconds of each of `KINDS`.

    Raises:
      UserError: there are none.
    """
    attempts: list[list[dict[str, Any]]] = []
    recorded = []
    with contextlib.suppress(OSError):
        recorded = log.read_events(workdir)
    if not recorded:
        raise UserError(
            f"--workdir={workdir} has no {log.EVENTS}, which runs write as they train"
        )
    for event in recorded:
        if event["event"] == "start" or not attempts:
            attempts.append([])
        attempts[-1].append(event)
    spent = dict.fromkeys(KINDS, 0.0)
    for number, events in enumerate(attempts):
        later = attempts[number + 1 :]
        kept = min((other[0]["step"] for other in later), default=math.inf)
        for event in events:
            if event["event"] == "train":
                share = min(max((event["step"] - kept) / event["steps"], 0), 1)
                worked = event["seconds"] - event["waited"]
                spent["lost"] += event["seconds"] * share
                spent["training"] += worked * (1 - share)
                spent["waiting"] += event["waited"] * (1 - share)
            else:
                spent[_EVENTS[event["event"]]] += event["seconds"]
        if later:
            spent["down"] += _begin(later[0]) - events[-1]["time"]
    total = attempts[-1][-1]["time"] - _begin(attempts[0])
    spent["other"] = total - sum(spent.values())
    return {
        "goodput": spent["training"] / total,
        "seconds": total,
        "restarts": len(attempts) - 1,
        **spent,
    }


def _begin(events: list[dict[str, Any]]) -> float:
    return events[0]["time"] - events[0]["seconds"]


def table(found: dict[str, Any]) -> str:
    """What `account` found, as text to read."""
    total = found["seconds"]
    lines = [
        f"{name:>10}  {found[name]:9.1f} s  {found[name] / total:6.1%}  {meaning}"
        for name, meaning in KINDS.items()
    ]
    return "\n".join(
        [*lines, f"{'in all':>10}  {total:9.1f} s, {found['restarts']} restarts"]
    )
