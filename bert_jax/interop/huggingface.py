"""Models in Hugging Face's format, read and written."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from bert_jax.config import Config, Model, TaskSettings
from bert_jax.data.tokenizer import TextTokenizer
from bert_jax.errors import UserError
from bert_jax.interop import names
from bert_jax.interop.families import BERT, CLASSES, FAMILIES, Class, Family, narrow
from bert_jax.interop.source import (
    Described,
    Source,
    lead,
    read_json,
    read_model,
    read_tokenizer,
)
from bert_jax.model.parts import of_encoder

_SHAPE = {"segments", "embedding", "layer_groups"}  # what tells families apart
# Arrays of fixed numbers that some versions save.
_CONSTANTS = ("embeddings.position_ids", "embeddings.token_type_ids")


def describe(directory: Path) -> Described:
    """The model and tokenizer that `save_pretrained` of a known class wrote.

    Raises:
      UserError: a file is missing or damaged, or is not of such a model.
    """
    file, options = directory / "config.json", directory / "tokenizer_config.json"
    values = read_json(file)
    model = read_model(file, values, _family(file, values))
    said = read_json(options) if options.is_file() else {}
    return read_tokenizer(directory, model, said)


def load(directory: Path) -> Source:
    """The same with the weights.

    Raises:
      UserError: as `describe`; also a damaged weights file, or sizes that disagree
        with the config. Pickled code is never run.
    """
    model, settings, tokenizer = describe(directory)
    file = directory / "config.json"
    values = read_json(file)
    family = _family(file, values)
    named = _class(file, values, family)
    table = family.table(named.names if named else None)
    tensors = _clean(dict(_read(directory)), family, table, directory)
    parts = names.parts_of(tensors, table)
    if named is None:
        named = _guess(file, parts)
    kind = named.task
    size = {row.ours: row.theirs for row in table}["head/bias"]
    classes = len(tensors[size]) if size in tensors else 0
    labels = _labels(values, classes) if kind in ("classify", "tag", "span") else ()
    if kind == "classify" and classes == 1:
        kind, labels = "regress", ()
    where = f"{directory}, config in {file.name}"
    # A file may hold more than its class: those first published as BertForMaskedLM
    # have the next-sentence head too, which is kept.
    parts |= set(named.parts)
    before = lead(family, values)
    params = names.from_theirs(tensors, table, model, parts, classes, where, before)
    task = TaskSettings(kind=kind, labels=labels)
    pair = family.pair if "nsp" in params and model.segments > 1 else "none"
    return Source(model, task, params, settings, tokenizer, pair)


def _family(file: Path, values: Mapping[str, Any]) -> Family:
    named = values.get("model_type") or BERT.kind
    for family in FAMILIES:
        if family.kind == named:
            break
    else:
        known = ", ".join(sorted(family.kind for family in FAMILIES))
        raise UserError(
            f"{file}: model_type={named!r}, but only models of these types can be "
            f"imported: {known}"
        )
    for name, wanted in family.fixed.items():
        if values.get(name) not in (wanted, None):
            raise UserError(
                f"{file}: {name}={values[name]!r}, but only encoders with "
                f"{name}={wanted!r} can be imported"
            )
    if values.get("pruned_heads"):
        raise UserError(
            f"{file}: pruned_heads is set; a model with all heads is needed"
        )
    return family


def _class(file: Path, values: Mapping[str, Any], family: Family) -> Class | None:
    """What the config says of the class, if it does."""
    named = (values.get("architectures") or [None])[0]
    if named is None:
        return None
    known = {family.title + suffix: found for suffix, found in family.classes.items()}
    if named not in known:
        raise UserError(
            f"{file}: architectures names {named!r}; known are {', '.join(known)}"
        )
    return known[named]


def _guess(file: Path, parts: set[str]) -> Class:
    if "head" in parts:
        raise UserError(
            f"{file}: says no architectures, and a classifier may belong to several; "
            'add for example "architectures": ["BertForSequenceClassification"]'
        )
    return Class("pretrain" if parts & {"mlm", "rtd"} else "encoder", ())


def _labels(values: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of the classes in order of their ids."""
    named = {int(k): str(v) for k, v in (values.get("id2label") or {}).items()}
    return tuple(named.get(i, f"LABEL_{i}") for i in range(count))


def _read(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors of the one file, or of its shards."""
    for stem, read in (
        ("model.safetensors", _safetensors),
        ("pytorch_model.bin", _bin),
    ):
        index = directory / f"{stem}.index.json"
        if (directory / stem).is_file():
            yield from read(directory / stem)
            return
        if index.is_file():
            shards = read_json(index).get("weight_map") or {}
            for name in sorted(set(shards.values())):
                yield from read(directory / Path(name).name)
            return
    raise UserError(f"{directory}: no model.safetensors or pytorch_model.bin there")


def _safetensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        with safetensors.safe_open(file, framework="np") as reader:
            for name in reader.keys():  # noqa: SIM118, not a dict
                yield name, np.asarray(reader.get_tensor(name), np.float32)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{file}: damaged or cut short ({error}); fetch it again"
        ) from None


def _bin(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{file}: reading it needs PyTorch; pip install torch, or save the model "
            "as model.safetensors"
        ) from None
    try:
        # Only tensors: a pickle that names any other code is refused, not run.
        found = torch.load(file, map_location="cpu", weights_only=True)
        tensors = {name: tensor.float().numpy() for name, tensor in found.items()}
    except Exception as error:  # the library raises a dozen kinds
        first = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{file}: no PyTorch checkpoint of plain tensors, or damaged ({first}); "
            "save the model as model.safetensors"
        ) from None
    yield from tensors.items()


def _clean(
    tensors: dict[str, np.ndarray], family: Family, table: list[names.Name], where: Path
) -> dict[str, np.ndarray]:
    """Modern names, and nothing that is not a parameter of its own."""
    ours = {row.ours: row.theirs for row in table}
    starts = {row.theirs.split("{}")[0] for row in table}
    found = {}
    for name, array in tensors.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        whole = f"{family.kind}.{name}"
        if whole.startswith(tuple(starts)):  # of the bare model
            name = whole
        if not name.endswith(_CONSTANTS):
            found[name] = array
    bias = ours["mlm/bias"]
    copies = {
        f"{family.decoder}.bias": bias,
        f"{family.decoder}.weight": ours["embeddings/token"],
    }
    copies = {copy: original for copy, original in copies.items() if copy != original}
    if bias not in found and f"{family.decoder}.bias" in found:
        found[bias] = found[f"{family.decoder}.bias"]
    for copy, original in copies.items():
        if copy in found and original in found:
            if not np.array_equal(found[copy], found[original]):
                raise UserError(
                    f"{where}: {copy} differs from {original}; the output layer is "
                    "the embedding table here, and an untied one cannot be imported"
                )
            del found[copy]
    return found


def save(
    directory: Path,
    config: Config,
    kind: str,
    tensors: names.Tensors,
    tokenizer: TextTokenizer,
    card: str,
) -> None:
    """Writes a directory that `from_pretrained` of transformers loads.

    Args:
      directory: must not exist, or be empty.
      config: of the run; `model`, `task` and `tokenizer` are read.
      kind: the class to load it with, such as `BertForPreTraining`.
      tensors: of that class, by name; from `to_tensors`.
      tokenizer: the run's.
      card: text of the README.md, the model card.

    Raises:
      UserError: the directory has files in it, or cannot be written.
    """
    make(directory)
    try:
        tokenizer.save(directory)
        _write(
            directory / "tokenizer_config.json", _tokenizer_config(config, tokenizer)
        )
        (directory / "README.md").write_text(card, encoding="utf-8")
        weights = directory / "model.safetensors"
        save_file(dict(tensors), weights, {"format": "pt"})
        weights.chmod((directory / "README.md").stat().st_mode)  # not for us alone
        # Last: without it nothing takes the directory for a model.
        _write(directory / "config.json", _config(config, kind, tokenizer))
    except OSError as error:
        raise _unwritable(directory, error) from error


def make(directory: Path) -> None:
    """Makes an empty directory for a model, or takes one that is there.

    Raises:
      UserError: it has files in it, or cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        full = any(directory.iterdir())
    except OSError as error:
        raise _unwritable(directory, error) from error
    if full:
        raise UserError(f"--output={directory} is not empty; choose another directory")


def _unwritable(directory: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"--output={directory}: cannot be written ({reason})")


def halves(params: Mapping[str, Any], config: Config) -> dict[str, tuple[Model, Any]]:
    """The models that a run's parameters make up: sizes and parameters, by folder.

    One, whose folder is "", or both halves of an ELECTRA. Clark et al. 2020, section 2.
    """
    if "generator" not in params:
        return {"": (config.model, params)}
    small = config.model.narrowed(config.objective.generator_size)
    generator = {"embeddings": params["embeddings"], **params["generator"]}
    discriminator = {name: p for name, p in params.items() if name != "generator"}
    return {
        "discriminator": (config.model, discriminator),
        "generator": (small, generator),
    }


def to_tensors(
    params: Mapping[str, Any], model: Model, task: TaskSettings, pad: int = 0
) -> tuple[str, dict[str, np.ndarray]]:
    """A model of ours as one of Hugging Face's classes.

    Args:
      params: by part, of arrays that this process can read in full.
      model: sizes.
      task: kind and labels.
      pad: the id of the padding, from which RoBERTa counts positions.

    Returns:
      The class, such as `BertForMaskedLM`, and its tensors by name. Parts for which
      the class has no place are left out.

    Raises:
      UserError: no class fits the model, its parts, or the task.
    """
    if task.features or task.lstm:
        name, instead = "lstm", ""
        if task.features:
            instead = ", or export config.init, whose encoder it has unchanged"
            name = "features"
        raise UserError(
            f"config.task.{name}={getattr(task, name)}: transformers has no model with "
            f"an LSTM, so this one cannot be exported; use bert-jax predict{instead}"
        )
    kind = _choose(set(params), model, task)
    family, named = CLASSES[kind]
    wanted = {*of_encoder(model), *named.parts, *named.may}
    chosen = {part: value for part, value in params.items() if part in wanted}
    classes = len(params["head"]["bias"]) if "head" in named.parts else 0
    before = lead(family, {"pad_token_id": pad})
    table = family.table(named.names)
    tensors = names.to_theirs(chosen, table, model, classes, before)
    if named.task == "encoder":
        start = f"{family.kind}."
        tensors = {name.removeprefix(start): a for name, a in tensors.items()}
    return kind, tensors


def _choose(parts: set[str], model: Model, task: TaskSettings) -> str:
    """The class that holds a model; of several, one that has its pooler and most."""
    wanted = "classify" if task.kind == "regress" else task.kind
    held = [
        kind
        for kind, (_, named) in CLASSES.items()
        if named.task == wanted and set(named.parts) <= parts
    ]
    if not held:
        raise UserError(
            f"no Hugging Face class holds a {task.kind} model of these parts: "
            f"{', '.join(sorted(parts))}"
        )
    found = {kind: _obstacles(model, *CLASSES[kind]) for kind in held}

    def distance(kind: str) -> tuple[int, ...]:
        faults, (family, named) = found[kind], CLASSES[kind]
        other = family.pooler != model.pooler
        return len(faults & _SHAPE), len(faults), other, -len(named.parts)

    best = min(held, key=distance)
    if found[best]:
        fields = (f"{name}={getattr(model, name)!r}" for name in sorted(found[best]))
        raise UserError(
            f"config.model has {', '.join(fields)}: neither {best} of transformers, "
            "the nearest, nor any other of its classes that are known here computes "
            "this, so the model cannot be exported"
        )
    return best


def _obstacles(model: Model, family: Family, named: Class) -> set[str]:
    """Fields of a model that a class cannot express."""
    least, most = family.segments
    fits = {
        "mixer": model.mixer == "attention",
        "window": not model.window,
        "position": model.position == "learned",
        "norm": model.norm == "post",
        "norm_epsilon": "norm_epsilon" in family.rates or model.norm_epsilon == 1e-12,
        "feed_forward": model.feed_forward == "gelu",
        "activation": model.activation in family.activations.values(),
        "pooler": "pooler" not in named.parts or model.pooler == family.pooler,
        "segments": least <= model.segments <= most,
        "embedding": narrow(model) in family.narrow,
        "layer_groups": bool(model.layer_groups) == ("layer_groups" in family.sizes),
    }
    return {name for name, good in fits.items() if not good}


def _config(config: Config, kind: str, tokenizer: TextTokenizer) -> dict[str, Any]:
    model, labels, (family, _) = config.model, config.task.labels, CLASSES[kind]
    vocabulary = tokenizer.vocabulary()
    ids = {
        "pad_token_id": vocabulary.pad,
        "bos_token_id": vocabulary.cls,
        "eos_token_id": vocabulary.sep,
    }
    activations = {
        ours: theirs for theirs, ours in reversed([*family.activations.items()])
    }
    values = {
        "architectures": [kind],
        "model_type": family.kind,
        "dtype": "float32",
        **{key: getattr(model, ours) for ours, key in family.sizes.items()},
        **{key: getattr(model, ours) for ours, key in family.rates.items()},
        **dict.fromkeys(family.heads_dropout, model.dropout),
        **family.fixed,
        **ids,
        family.activation: activations[model.activation],
    }
    values[family.sizes["positions"]] += lead(family, ids)
    if "embedding" in family.sizes:
        values[family.sizes["embedding"]] = model.embedding_width
    if config.task.kind == "regress":
        labels = ("LABEL_0",)
        values["problem_type"] = "regression"
    if config.task.kind in ("classify", "tag", "regress"):
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    return values


def _tokenizer_config(config: Config, tokenizer: TextTokenizer) -> dict[str, Any]:
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    values: dict[str, Any] = dict(zip(roles, tokenizer.special, strict=True))
    values["model_max_length"] = config.model.positions
    segment = ["token_type_ids"] if config.model.segments > 1 else []
    values["model_input_names"] = ["input_ids", *segment, "attention_mask"]
    if tokenizer.kind != "wordpiece":
        return values | {"tokenizer_class": "PreTrainedTokenizerFast"}
    return values | {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": config.tokenizer.lowercase,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
    }


def _write(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
