"""Data sets of TensorFlow Datasets, by name: `tfds:NAME[/CONFIG][:SPLIT]`."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from bert_jax.errors import UserError

_PREFIX = "tfds:"
# GLUE's own files call these classes 0 and 1; the library gives them names.
_NUMBERED = tuple(f"glue/{task}" for task in ("cola", "mrpc", "qqp", "sst2", "wnli"))
_BATCH = 256  # [records] converted together: several times as fast as one by one
_RETRIES = 5  # of a download, within about 6 seconds
_SHOWN = 230  # [characters] of what the library says


def is_named(source: str) -> bool:
    """Whether a source is a data set's name rather than a path."""
    return source.startswith(_PREFIX)


def with_split(source: str, split: str) -> str:
    """The source itself, a name without a split with this one."""
    bare = is_named(source) and ":" not in source.removeprefix(_PREFIX)
    return f"{source}:{split}" if bare else source


def stream(source: str) -> Iterator[dict[str, Any]]:
    """Reads the records of a split in an order that never changes.

    Args:
      source: `tfds:NAME[/CONFIG]:SPLIT`; fetched first if TFDS_DATA_DIR has it not.

    Yields:
      Records of str, int, float, bool, lists and dicts. A class is its name, in the
      spelling of GLUE's own files; None stands for a hidden label (-1).

    Raises:
      UserError: the library lacks it or cannot fetch or read it.
    """
    name, _, split = source.removeprefix(_PREFIX).partition(":")
    try:
        import tensorflow as tf
        import tensorflow_datasets
        from tensorflow_datasets.core.download import downloader

        # The library's ten take minutes for each set on a machine without a network.
        downloader.MAX_RETRIES = _RETRIES

        tf.config.set_visible_devices([], "GPU")  # all of whose memory it would take
        with contextlib.redirect_stdout(sys.stderr):
            builder: Any = tensorflow_datasets.builder(
                name, data_dir=os.environ.get("TFDS_DATA_DIR")
            )
            builder.download_and_prepare()
        features = builder.info.features
        for batch in builder.as_dataset(split=split).ragged_batch(_BATCH):
            for record in _plain(batch, features, name in _NUMBERED):
                if name == "glue/stsb" and record["label"] == -1:
                    record["label"] = None
                yield record
    except ImportError as error:
        raise UserError(
            f"{source}: needs tensorflow-datasets and tensorflow-cpu ({error}); pip "
            "install what is missing"
        ) from None
    except Exception as error:  # the library raises a dozen kinds of its own
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:_SHOWN]
        raise UserError(
            f"{source}: TensorFlow Datasets cannot read it ({said}); mend the name or "
            "the split; if it cannot be fetched from here, let TFDS_DATA_DIR name a "
            "directory in which it is prepared, or name files of your own by "
            "--config.data.source or --config.task.train_file"
        ) from error


def examples(source: str) -> list[tuple[str, dict[str, Any]]]:
    """All records of `stream`, each after its place, `source[NUMBER]`.

    They are in the order of their `idx`, if they have one: the library shuffles what
    it stores, and submissions to GLUE are in the order of the original file.
    """
    found = list(stream(source))
    if found and isinstance(found[0].get("idx"), int):
        found.sort(key=lambda record: record["idx"])
    return [(f"{source}[{number}]", record) for number, record in enumerate(found)]


def _plain(values: Any, feature: Any, numbered: bool) -> list[Any]:
    """A batch of tensors, or of dicts of them, as a list of Python's values."""
    while hasattr(feature, "feature"):  # of a sequence: that of its parts
        feature = feature.feature
    if isinstance(values, dict):
        columns = [_plain(one, feature[key], numbered) for key, one in values.items()]
        rows = zip(*columns, strict=True)
        return [dict(zip(values, row, strict=True)) for row in rows]

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(plain, value))
        if hasattr(feature, "int2str"):
            if value < 0:
                return None
            return str(value) if numbered else feature.int2str(value)
        if isinstance(value, bytes):  # readers check it: not all of it need be text
            return value.decode(errors="surrogateescape")
        return value

    ragged = hasattr(values, "to_list")
    return plain(values.to_list() if ragged else values.numpy().tolist())
