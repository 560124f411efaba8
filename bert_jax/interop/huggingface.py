"""Models in Hugging Face's format, read and written."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from bert_jax.config import Config, Model, TaskSettings
from bert_jax.data.subword_models import SPECIAL
from bert_jax.data.tokenizer import TextTokenizer
from bert_jax.errors import UserError
from bert_jax.interop import names
from bert_jax.interop.source import (
    Described,
    Source,
    read_json,
    read_model,
    read_tokenizer,
)

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Their class -> our task and the parts it needs beside the encoder.
_CLASSES = {
    "BertForPreTraining": ("pretrain", ("mlm", "nsp", "pooler")),
    "BertForMaskedLM": ("pretrain", ("mlm",)),
    "BertForSequenceClassification": ("classify", ("head", "pooler")),
    "BertForTokenClassification": ("tag", ("head",)),
    "BertForQuestionAnswering": ("span", ("head",)),
    "BertForMultipleChoice": ("choice", ("head", "pooler")),
    "BertModel": ("encoder", ()),
}
_TIED = {  # copies that some versions write beside the tensor itself
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def describe(directory: Path) -> Described:
    """The model and tokenizer that `save_pretrained` of a BERT class wrote.

    Raises:
      UserError: a file is missing or damaged, or is not of a BERT.
    """
    file, options = directory / "config.json", directory / "tokenizer_config.json"
    values = read_json(file)
    _check_architecture(file, values)
    model = read_model(file, values, _ACTIVATIONS)
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
    tensors = _clean(dict(_read(directory)), directory)
    parts = names.parts_of(tensors)
    kind, needed = _kind(file, values, parts)
    classes = len(tensors["classifier.weight"]) if "head" in parts else 0
    labels = _labels(values, classes) if kind in ("classify", "tag", "span") else ()
    if kind == "classify" and classes == 1:
        kind, labels = "regress", ()
    where = f"{directory}, config in {file.name}"
    everything = parts | set(needed)
    params = names.from_theirs(tensors, model, everything, classes, where)
    task = TaskSettings(kind=kind, labels=labels)
    return Source(model, task, params, settings, tokenizer)


def _check_architecture(file: Path, values: Mapping[str, Any]) -> None:
    wanted = {
        "model_type": ("bert", None),
        "position_embedding_type": ("absolute", None),
        "is_decoder": (False, None),
        "add_cross_attention": (False, None),
    }
    for name, allowed in wanted.items():
        if values.get(name) not in allowed:
            raise UserError(
                f"{file}: {name}={values[name]!r}, but only BERT encoders "
                f"({name}={allowed[0]!r}) can be imported"
            )
    if values.get("pruned_heads"):
        raise UserError(
            f"{file}: pruned_heads is set; a model with all heads is needed"
        )


def _kind(
    file: Path, values: Mapping[str, Any], parts: set[str]
) -> tuple[str, tuple[str, ...]]:
    """Our task for a file with these parts, and the parts that the config promises.

    A file may hold more than its class: those first published as BertForMaskedLM
    have the next-sentence head too, which is kept.
    """
    named = (values.get("architectures") or [None])[0]
    if named in _CLASSES:
        return _CLASSES[named]
    if named is not None:
        known = ", ".join(_CLASSES)
        raise UserError(f"{file}: architectures names {named!r}; known are {known}")
    if "head" in parts:
        raise UserError(
            f"{file}: says no architectures, and a classifier may belong to several; "
            'add for example "architectures": ["BertForSequenceClassification"]'
        )
    return "pretrain" if "mlm" in parts else "encoder", ()


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


def _clean(tensors: dict[str, np.ndarray], where: Path) -> dict[str, np.ndarray]:
    """Modern names, and nothing that is not a parameter of its own."""
    found = {}
    for name, array in tensors.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        name = name.replace("qa_outputs.", "classifier.")
        if name.startswith(("embeddings.", "encoder.", "pooler.")):  # of a BertModel
            name = f"bert.{name}"
        if not name.endswith("embeddings.position_ids"):  # a constant, once saved
            found[name] = array
    if "cls.predictions.bias" not in found:
        alone = found.pop("cls.predictions.decoder.bias", None)
        found |= {} if alone is None else {"cls.predictions.bias": alone}
    for copy, original in _TIED.items():
        if copy in found and original in found:
            if not np.array_equal(found[copy], found[original]):
                raise UserError(
                    f"{where}: {copy} differs from {original}; BERT's output layer "
                    "is its embedding table, and an untied one cannot be imported"
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
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UserError(
                f"--output={directory} is not empty; choose another directory"
            )
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
        raise UserError(
            f"--output={directory}: cannot be written ({error.strerror or error})"
        ) from error


def to_tensors(
    params: Mapping[str, Any], model: Model, task: TaskSettings
) -> tuple[str, dict[str, np.ndarray]]:
    """A model of ours as one of Hugging Face's classes.

    Args:
      params: by part, of arrays that this process can read in full.
      model: sizes.
      task: kind and labels.

    Returns:
      The class, such as `BertForMaskedLM`, and its tensors by name. Parts for which
      the class has no place are left out.

    Raises:
      UserError: no class fits the parts, or the task.
    """
    if task.features:
        raise UserError(
            f"config.task.features={task.features}: transformers has no BERT with an "
            "LSTM, so this model cannot be exported; use it with bert-jax predict, or "
            "export config.init, whose encoder it has unchanged"
        )
    if model.mixer != "attention":
        raise UserError(
            f"config.model.mixer={model.mixer}: transformers' BERT has attention only, "
            "so this model cannot be exported"
        )
    wanted = "classify" if task.kind == "regress" else task.kind
    fits = [
        (kind, needed)
        for kind, (name, needed) in _CLASSES.items()
        if name == wanted and set(needed) <= set(params)
    ]
    if not fits:
        raise UserError(
            f"no Hugging Face class holds a {task.kind} model of these parts: "
            f"{', '.join(params)}"
        )
    kind, needed = fits[0]
    if kind == "BertModel":
        needed = ("pooler",) if "pooler" in params else ()
    chosen = {part: params[part] for part in (*names.ENCODER, *needed)}
    classes = len(params["head"]["bias"]) if "head" in needed else 0
    tensors = names.to_theirs(chosen, model, classes)
    if kind == "BertModel":
        tensors = {name.removeprefix("bert."): a for name, a in tensors.items()}
    if kind == "BertForQuestionAnswering":
        tensors = {
            n.replace("classifier.", "qa_outputs."): a for n, a in tensors.items()
        }
    return kind, tensors


def _config(config: Config, kind: str, tokenizer: TextTokenizer) -> dict[str, Any]:
    model, labels = config.model, config.task.labels
    values = {
        "architectures": [kind],
        "model_type": "bert",
        "dtype": "float32",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp,
        "hidden_act": {"gelu": "gelu", "gelu_tanh": "gelu_new"}[model.activation],
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "max_position_embeddings": model.positions,
        "type_vocab_size": model.segments,
        "initializer_range": model.init_std,
        "layer_norm_eps": model.norm_epsilon,
        "position_embedding_type": "absolute",
        "pad_token_id": tokenizer.vocabulary().pad,
    }
    if config.task.kind == "regress":
        labels = ("LABEL_0",)
        values["problem_type"] = "regression"
    if config.task.kind in ("classify", "tag", "regress"):
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    return values


def _tokenizer_config(config: Config, tokenizer: TextTokenizer) -> dict[str, Any]:
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    values: dict[str, Any] = dict(zip(roles, SPECIAL, strict=True))
    values["model_max_length"] = config.model.positions
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
