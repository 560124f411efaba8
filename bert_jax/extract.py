"""Feature vectors of the lines of a text file, from a trained encoder.

Lines are packed into rows, longest first, a window of them at a time. A finished
window is a file of its own beside the output, so that a stopped job goes on.
"""

import collections
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from bert_jax import arrays, sharding
from bert_jax.config import Model
from bert_jax.data import lines
from bert_jax.data.decompress import chunks
from bert_jax.data.sequences import Sequences, rows_of
from bert_jax.data.tokenizer import TextTokenizer
from bert_jax.errors import UserError
from bert_jax.model import Bert

_WINDOW = {"cls": 1 << 20, "mean": 1 << 20, "none": 1 << 18}  # [tokens]
_FORMS = "last, second_to_last, embeddings, sum_last_K, mean_all, concat:0,6,12"


class Job(NamedTuple):
    """What is to be extracted."""

    layers: str = "last"  # see `select`
    pool: str = "mean"  # cls, mean (over all tokens of a line) or none (each token)
    max_length: int = 512  # [tokens] of a line with [CLS] and [SEP]; the rest is cut
    batch_tokens: int = 8192  # [tokens] in one batch, over all devices


class Encoder(NamedTuple):
    """A model that is ready to run."""

    model: Model
    params: Any
    tokenizer: TextTokenizer
    mesh: jax.sharding.Mesh
    identity: str  # tells one model from another


def select(layers: str, count: int) -> tuple[list[int], str]:
    """The layers that a name stands for, and how they are combined.

    Args:
      layers: `embeddings`, `last`, `second_to_last`; `sum_`, `mean_` or `concat_`
        with `last_K` or `all` (every layer, the embeddings not); or `sum:`, `mean:`
        or `concat:` with numbers, where 0 is the embeddings and -1 the last layer.
      count: layers of the model.

    Returns:
      Numbers from 0, the embeddings, to count; and `sum`, `mean` or `concat`.

    Raises:
      UserError: no such name, or a layer that the model does not have.

    Devlin et al. 2019, section 5.3, Table 7.
    """
    named = {"embeddings": [0], "last": [count], "second_to_last": [count - 1]}
    match = re.fullmatch(
        r"(sum|mean|concat)(?:_last_(\d+)|_(all)|:(-?\d+(?:,-?\d+)*))", layers
    )
    if layers in named:
        chosen, how = named[layers], "sum"
    elif match:
        how, last, every, listed = match.groups()
        chosen = list(range(1, count + 1))
        if last:
            chosen = [count - i for i in range(int(last))][::-1]
        elif not every:
            numbers = [int(number) for number in listed.split(",")]
            chosen = [n + count + 1 if n < 0 else n for n in numbers]
    else:
        raise UserError(f"--layers={layers}: use a form like {_FORMS}")
    if not chosen or not all(0 <= layer <= count for layer in chosen):
        raise UserError(
            f"--layers={layers}: the model has layers 1 to {count}, and 0, the "
            "embeddings"
        )
    return chosen, how


def extract(
    encoder: Encoder,
    job: Job,
    source: Path,
    output: Path,
    note: Callable[[str], None],
    encoding: str = "utf-8",
) -> dict[str, Any]:
    """Writes the features of every line of a file; a stopped job goes on.

    Args:
      encoder: the model.
      job: what to extract.
      source: text, one item a line, also compressed, or a pipe, which is copied to
        the directory of temporary files first.
      output: .npz or .parquet, with an entry for each line, empty ones too:
        `features` float32 [lines, D]; for `pool=none` [tokens, D], with `offset`
        int64 [lines + 1], `token` int32 [tokens] and `span` int32 [tokens, 2], the
        characters of the line that a token stands for, [0, 0] for [CLS] and [SEP].
      note: is told of the progress.
      encoding: codec of the text if it has no byte order mark.

    Returns:
      Counts, seconds and speed.

    Raises:
      UserError: the input cannot be read, the output exists or cannot be written,
        or what an earlier job left beside it belongs to another job.
    """
    began = time.monotonic()
    if output.exists():
        raise UserError(f"--output={output} exists; choose another file, or remove it")
    if source.exists() and not source.is_file():
        with tempfile.NamedTemporaryFile() as copy:  # a pipe can be read only once
            copy.writelines(chunks(str(source)))
            copy.flush()
            given = Path(copy.name)
            return extract(encoder, job, given, output, note, encoding)
    parts = output.with_name(output.name + ".partial")
    total, content = 0, xxhash.xxh3_128()
    for line in lines.read(source, encoding, collections.Counter()):
        content.update(line.encode() + b"\n")
        total += 1
    if not total:
        raise UserError("--input: there is no line in it")
    _claim(parts, encoder, job, content.hexdigest())
    counts: collections.Counter[str] = collections.Counter()
    run = _Run(encoder, job)
    files = []
    computed, worked = 0, 0.0
    windows = lines.windows(
        lines.read(source, encoding, counts),
        encoder.tokenizer,
        job.max_length,
        _WINDOW[job.pool],
        job.pool == "none",
        counts,
    )
    for number, texts in enumerate(windows):
        files.append(parts / f"{number:06d}.npz")
        if files[-1].exists():
            continue
        start = time.monotonic()
        arrays.save(files[-1], run.window(texts))
        worked += time.monotonic() - start
        computed += int(texts.offset[-1])
        note(
            f"{counts['lines']:,} of {total:,} lines, "
            f"{computed / worked / 1000:.1f}k tokens/s"
        )
    arrays.join(files, output)
    shutil.rmtree(parts)
    return {
        **{name: counts[name] for name in ("lines", "tokens", "cut", "bad_utf8_lines")},
        "features": run.width,
        "seconds": time.monotonic() - began,
        "tokens_per_second": computed / worked if worked else 0.0,
    }


class _Run:
    """The compiled model, and its work on one window after another."""

    def __init__(self, encoder: Encoder, job: Job) -> None:
        self._encoder, self._job = encoder, job
        chosen, how = select(job.layers, encoder.model.layers)
        self.width = encoder.model.hidden * (len(chosen) if how == "concat" else 1)
        self._place = sharding.batch_sharding(encoder.mesh)
        self._devices = encoder.mesh.shape["data"] * encoder.mesh.shape["fsdp"]
        self._apply = jax.jit(_features(encoder.model, chosen, how, job.pool))

    def window(self, texts: Sequences) -> dict[str, np.ndarray]:
        """The arrays of the output for these lines."""
        length = np.diff(texts.offset)
        pooled = self._job.pool != "none"
        count = len(length) if pooled else len(texts.token)
        features = np.empty((count, self.width), np.float32)
        # Where the results of the batches that the devices still work on belong.
        pending: collections.deque[Any] = collections.deque()

        def collect() -> None:
            place, found = pending.popleft()
            features[place[place >= 0]] = np.asarray(found)[place >= 0]

        for rows, limit in lines.rows(length, self._job.max_length):
            size = max(self._job.batch_tokens // limit // self._devices, 1)
            size *= self._devices
            for first in range(0, len(rows), size):
                some = rows[first : first + size]
                empty = np.full((size - len(some), rows.shape[1]), -1, rows.dtype)
                some = np.concatenate([some, empty])
                batch, source = rows_of(texts, some, limit)
                given = jax.device_put(batch, self._place)
                found = self._apply(self._encoder.params, given)
                pending.append((some if pooled else source, found))
                if len(pending) > 2:
                    collect()
        while pending:
            collect()
        if pooled:
            return {"features": features}
        return {
            "features": features,
            "offset": texts.offset,
            "token": texts.token,
            "span": texts.span,
        }


def _features(
    model: Model, chosen: list[int], how: str, pool: str
) -> Callable[[Any, Mapping[str, jax.Array]], jax.Array]:
    """(params, batch) -> float32 [B, K, D] of lines, or [B, L, D] of tokens."""
    every = chosen != [model.layers]
    bert: Any = Bert(model, keep="hidden" if every else "")

    def features(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        variables = {"params": params}
        if every:
            states = bert.apply(variables, batch, method="hidden_states")
            states = states[jnp.array(chosen)]
        else:
            states = bert.apply(variables, batch, method="encode")[None]
        states = states.astype(jnp.float32)
        if pool == "cls":
            states = jnp.take_along_axis(
                states, batch["nsp_position"][None, :, :, None], 2
            )
        elif pool == "mean":
            slots = jnp.arange(batch["nsp_position"].shape[1])[None, None] + 1
            inside = (batch["example"][:, :, None] == slots).astype(jnp.float32)
            count = jnp.maximum(inside.sum(1), 1)[None, :, :, None]
            states = jnp.einsum("BLK,NBLD->NBKD", inside, states) / count
        if how == "concat":
            return jnp.concatenate(list(states), axis=-1)
        return states.sum(0) if how == "sum" else states.mean(0)

    return features


def _claim(parts: Path, encoder: Encoder, job: Job, content: str) -> None:
    """Makes `parts` this job's own, or finds that it is."""
    facts = [*job, encoder.identity, content]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    mark = parts / "job"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        if not mark.exists():
            mark.write_text(digest)
        if mark.read_text() == digest:
            return
    except OSError as error:
        raise UserError(
            f"{parts}: cannot be written ({error.strerror}); choose another --output"
        ) from None
    raise UserError(
        f"{parts} was left by another job (other input, model or options); finish "
        "that one, remove the directory, or choose another --output"
    )
