"""Data sets on disk as TensorFlow Datasets would prepare them, without its code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath


def write(
    folder: Path,
    name: str,
    features: Mapping[str, Any],
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Prepares a data set.

    Args:
      folder: what TFDS_DATA_DIR is to name.
      name: `NAME[/CONFIG]/VERSION`, the version that the library asks for.
      features: as the library describes them.
      splits: the records of each, in the order in which they are to lie there.
    """
    directory = folder / name
    directory.mkdir(parents=True)
    described = tfds.features.FeaturesDict(features)
    infos = []
    for split, records in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=epath.Path(directory),
            dataset_name=name.partition("/")[0],
            split=split,
            filetype_suffix="tfrecord",
        )
        path = template.sharded_filepath(shard_index=0, num_shards=1)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                encoded = described.encode_example(record)
                writer.write(described.serialize_example(encoded))
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(records)],
                num_bytes=0,
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=directory, features=described, split_infos=infos
    )
