"""Models in Hugging Face's format, read and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bert_jax.config import Config, Model, TaskSettings
from bert_jax.data.tokenizer import TextTokenizer
from bert_jax.errors import UserError
from bert_jax.interop import names, weights
from bert_jax.interop.families import BERT, CLASSES, FAMILIES, Class, Family, narrow
from bert_jax.interop.source import (
    AS_STATED,
    Choices,
    Described,
    Source,
    lead,
    read_json,
    read_model,
    read_tokenizer,
)
from bert_jax.model.parts import of_encoder

_SHAPE = {"segments", "embedding", "layer_groups"}  # what tells families apart


def describe(directory: Path, choices: Choices = AS_STATED) -> Described:
    """The model and tokenizer that `save_pretrained` of a known class wrote.

    Raises:
      UserError: a file is missing or damaged, or is not of such a model.
    """
    file = directory / "config.json"
    values = read_json(file)
    model = read_model(file, values, _family(file, values))
    return read_tokenizer(directory, model, choices.lowercase)


def load(directory: Path, choices: Choices = AS_STATED) -> Source:
    """The same with the weights.

    Raises:
      UserError: as `describe`; also a damaged weights file, or sizes that disagree
        with the config. Pickled code is never run.
    """
    model, settings, tokenizer = describe(directory, choices)
    file = directory / "config.json"
    values = read_json(file)
    family = _family(file, values)
    named = _class(file, values, family, choices.architecture)
    table = family.table(named.names if named else None)
    tensors, dropped = weights.drop(weights.read(directory), choices.drop, directory)
    tensors = _clean(tensors, family, table, directory)
    parts = names.parts_of(tensors, table)
    if named is None:
        named = _guess(file, parts)
    kind = named.task
    size = {row.ours: row.theirs for row in table}["head/bias"]
    classes = len(tensors[size]) if size in tensors else 0
    _check_problem(file, values, kind, classes)
    labels = _labels(file, values, classes) if kind in ("classify", "tag") else ()
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
    left_out = tuple(dropped)
    return Source(model, task, params, settings, tokenizer, pair, left_out)


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


def _class(
    file: Path, values: Mapping[str, Any], family: Family, asked: str
) -> Class | None:
    """The class that is asked for, else the one that the config names, if it does."""
    listed = values.get("architectures") or [None]
    named = asked or (listed if isinstance(listed, str) else listed[0])
    if named is None:
        return None
    known = {family.title + suffix: found for suffix, found in family.classes.items()}
    if named not in known:
        said = "--architecture is" if asked else f"{file}: architectures names"
        raise UserError(
            f"{said} {named!r}; known for model_type={family.kind!r} are "
            f"{', '.join(known)}. To read it as one of these: bert-jax import "
            f"--source={file.parent} --workdir=RUN --architecture={next(iter(known))}, "
            "with --drop=REGEX for tensors that the class does not have; "
            "--config.init=RUN takes the result"
        )
    return known[named]


def _guess(file: Path, parts: set[str]) -> Class:
    if "head" in parts:
        raise UserError(
            f"{file}: says no architectures, and a classifier may belong to several; "
            'add for example "architectures": ["BertForSequenceClassification"], or '
            "name it to bert-jax import by --architecture"
        )
    return Class("pretrain" if parts & {"mlm", "rtd"} else "encoder", ())


def _check_problem(
    file: Path, values: Mapping[str, Any], kind: str, classes: int
) -> None:
    """Refuses a classifier whose loss is another than ours."""
    problem = values.get("problem_type")
    multiple = problem == "multi_label_classification"
    if kind == "classify" and (multiple or (problem == "regression" and classes > 1)):
        raise UserError(
            f"{file}: problem_type={problem!r} with {classes} outputs; classifiers "
            "here choose one class of several, or predict one number. To take the "
            "encoder alone: bert-jax import with --architecture=BertModel (or "
            "its family's) --drop='^classifier'"
        )


def _labels(file: Path, values: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of the classes in order of their ids."""
    found = values.get("id2label") or {}
    if isinstance(found, list):
        found = dict(enumerate(found))
    try:
        named = {int(key): str(value) for key, value in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f"{file}: id2label={json.dumps(found)[:200]} does not give each id its "
            'label, as {"0": "negative", "1": "positive"} does'
        ) from None
    unknown = sorted(key for key in named if not 0 <= key < count)
    labels = tuple(named.get(i, f"LABEL_{i}") for i in range(count))
    if unknown or len(set(labels)) < count:
        why = f"names the class {unknown[0]}" if unknown else "has a label twice"
        raise UserError(
            f"{file}: id2label {why}, but the head has {count} classes, each of which "
            "needs a label of its own; correct id2label"
        )
    return labels


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
    # transformers builds its BertTokenizer anew, from these flags alone.
    flags = tokenizer.bert_normalizer()
    if flags is None:
        return values | {"tokenizer_class": "PreTrainedTokenizerFast"}
    return values | {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": flags["lowercase"],
        "tokenize_chinese_chars": flags["handle_chinese_chars"],
        "strip_accents": flags["strip_accents"],
    }


def _write(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
