"""The rules that a config must obey before anything is opened or compiled."""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from bert_jax.config.schema import Config

_CHOICES = {
    "data.dtype": ("auto", "uint16", "uint32"),
    "tokenizer.kind": ("wordpiece", "bpe", "byte_bpe", "unigram"),
    "task.kind": (
        "pretrain",
        "classify",
        "regress",
        "tag",
        "span",
        "choice",
        "encoder",
    ),
    "task.glue": ("", *"cola sst2 mrpc stsb qqp mnli qnli rte wnli".split()),
    "task.bad_rows": ("auto", "refuse", "skip", "cut"),
    "task.features": (
        "",
        "embeddings",
        "second_to_last",
        "last",
        "sum_last_4",
        "concat_last_4",
        "sum_all",
    ),
    "objective.kind": ("mlm", "ltr", "rtd"),
    "objective.pair": ("nsp", "sop", "none"),
    "objective.masking": ("token", "whole_word", "span"),
    "objective.mask_count": ("unbiased", "nearest"),
    "model.activation": ("gelu_tanh", "gelu", "silu"),
    "model.pooler": ("tanh", "gelu", "relu"),
    "model.feed_forward": ("gelu", "geglu", "swiglu"),
    "model.norm": ("post", "pre", "rms"),
    "model.position": ("learned", "sinusoidal", "rope", "none"),
    "model.dtype": ("bfloat16", "float32"),
    "model.matmul_dtype": ("auto", "bfloat16"),
    "model.mixer": ("attention", "causal_attention", "mamba", "lstm"),
    "model.attention": ("auto", "xla", "flash", "cudnn", "pallas", "splash"),
    "model.remat": ("none", "full", "dots"),
    "optim.name": ("adamw", "lamb", "radam"),
    "optim.schedule": ("linear", "cosine", "rsqrt", "constant"),
    "optim.decay_from": ("warmup", "start"),
}
_POSITIVE = (
    "steps log_every eval_every save_every keep_last data.eval_rows "
    "tokenizer.train_bytes tokenizer.min_frequency model.vocab_size "
    "model.vocab_multiple model.hidden model.layers model.heads model.mlp "
    "model.positions model.norm_epsilon model.init_std model.rope_base "
    "model.global_every distill.temperature "
    "optim.peak_rate optim.epsilon optim.layer_decay task.epochs task.doc_stride "
    "task.max_answer task.lstm_hidden objective.rtd_factor"
).split()
_NOT_NEGATIVE = (
    "keep_best hang_after patience data.num_workers optim.end_rate optim.weight_decay "
    "optim.clip_norm optim.freeze_layers model.embedding model.layer_groups "
    "model.segments model.window distill.soft distill.hard distill.cosine "
    "distill.hidden distill.attention"
).split()
# ISO 639-1, and what is written instead of some of them.
_LANGUAGES = frozenset(
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co "
    "cr cs cu cv cy da de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl "
    "gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg "
    "ki kj kk kl km kn ko ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml "
    "mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt "
    "qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta "
    "te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za "
    "zh zu".split()
)
_MISTAKEN = {
    **{"kr": "ko", "jp": "ja", "cn": "zh", "gr": "el", "cz": "cs", "ua": "uk"},
    **{"kore": "ko", "japa": "ja", "chin": "zh", "engl": "en", "germ": "de"},
    **{"fren": "fr", "span": "es", "russ": "ru", "ital": "it", "port": "pt"},
}
_SHARES = (
    "data.eval_share task.dev_share objective.short_seq_prob objective.mask_rate "
    "model.dropout model.attention_dropout optim.warmup_share optim.beta1 optim.beta2"
).split()


def problems(config: Config, decided: Mapping[str, str] | None = None) -> list[str]:
    """Return every broken rule as "config.path=value: remedy"; empty if all hold.

    Args:
      config: resolved config; before that, the rules would judge other sizes.
      decided: fields of `config.model` that weights decide -> the setting that names
        the weights, such as `config.init=DIR`. No remedy proposes to change them.
    """
    decided = decided or {}
    faults = _range_problems(config) + _group_problems(config, decided)
    faults += _objective_problems(config, decided) + _tuning_problems(config)
    faults += _teaching_problems(config) + _phase_problems(config, decided)
    return faults + _mesh_problems(config)


def _get(config: Config, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), config)


def _range_problems(config: Config) -> list[str]:
    remedies = {}
    for path, allowed in _CHOICES.items():
        if _get(config, path) not in allowed:
            remedies[path] = f"choose one of {', '.join(filter(None, allowed))}"
    for path in _POSITIVE:
        if not 0 < _get(config, path) < math.inf:
            remedies[path] = "must be above 0, and finite"
    for path in _NOT_NEGATIVE:
        if not 0 <= _get(config, path) < math.inf:
            remedies[path] = "must not be below 0, and finite"
    for path in _SHARES:
        if not 0 <= _get(config, path) < 1:
            remedies[path] = "must be at least 0 and below 1"
    if not 0 <= config.seed < 2**32:
        remedies["seed"] = "must lie between 0 and 4,294,967,295"
    return _faults(config, remedies)


def _group_problems(config: Config, decided: Mapping[str, str]) -> list[str]:
    data, model = config.data, config.model
    remedies = {}
    remedies |= _text_problems(config)
    if config.task.skip_label and config.task.kind not in ("classify", "regress"):
        remedies["task.skip_label"] = "only classify and regress leave examples out"
    if config.task.bad_rows in ("skip", "cut") and config.task.kind in ("tag", "span"):
        remedies["task.bad_rows"] = "only tables of examples can do without a row"
    if config.task.positive and config.task.kind != "classify":
        remedies["task.positive"] = "needs config.task.kind=classify"
    if data.dtype == "uint16" and model.vocab_size > 2**16:
        remedies["data.dtype"] = "holds 65,536 tokens at most; use auto or uint32"
    if model.heads > 0 and model.hidden % model.heads:
        path = "model.heads"
        remedies[path] = f"must divide config.model.hidden={model.hidden}"
    if model.attention in ("cudnn", "splash") and model.attention_dropout:
        path = "model.attention_dropout"
        remedies[path] = f"must be 0 with config.model.attention={model.attention}"
    return _faults(config, remedies | _layer_problems(config, decided))


def _text_problems(config: Config) -> dict[str, str]:
    data, remedies = config.data, {}
    if not data.source:
        remedies["data.source"] = "name at least one glob, tfds:NAME or python-docs"
    if not _is_text_encoding(data.encoding):
        remedies["data.encoding"] = (
            "no such encoding; use Python's name of one, such as utf-8, utf-16, cp949, "
            "gb18030, shift_jis or latin-1"
        )
    code = data.language.lower().partition("-")[0]
    if not (code in _LANGUAGES or len(code) == 3 and code.isalpha()):
        near = _MISTAKEN.get(code) or _MISTAKEN.get(code[:4], "")
        hint = f"; did you mean {near!r}?" if near else ""
        remedies["data.language"] = (
            "no such language; use an ISO 639-1 code such as en, de, ko, ja or zh, or "
            f"a code of three letters{hint}"
        )
    return remedies


def _is_text_encoding(name: str) -> bool:
    try:
        return "a\n".encode(name).decode(name) == "a\n"
    except (LookupError, ValueError):  # hex, for example, is a codec but not of text
        return False


def _layer_problems(config: Config, decided: Mapping[str, str]) -> dict[str, str]:
    model, optim, remedies = config.model, config.optim, {}
    attends = model.mixer.endswith("attention")
    if model.position == "rope" and not attends:
        remedies["model.position"] = (
            f"turns the queries of attention, and mixer={model.mixer} has none; choose "
            "learned, sinusoidal or none"
        )
    elif model.position == "rope" and model.hidden // max(1, model.heads) % 2:
        remedies["model.position"] = "needs an even config.model.hidden / heads"
    if model.window and (model.window % 2 or not attends):
        remedies["model.window"] = (
            "must be even, half of it for each side, and without attention 0"
        )
    if optim.freeze_layers > model.layers:
        remedies["optim.freeze_layers"] = f"the model has {model.layers} layers"
    if model.layer_groups > 0:
        if model.layers % model.layer_groups:
            path = "model.layer_groups"
            remedies[path] = f"must divide config.model.layers={model.layers}"
        instead = (
            "" if "layer_groups" in decided else ", or config.model.layer_groups=0"
        )
        for name, off in (("layer_decay", 1), ("freeze_layers", 0)):
            if getattr(optim, name) != off:
                remedies[f"optim.{name}"] = (
                    "layers that share their parameters cannot be told apart; set "
                    f"--config.optim.{name}={off}{instead}"
                )
    return remedies


def _objective_problems(config: Config, decided: Mapping[str, str]) -> list[str]:
    objective, remedies = config.objective, {}
    inputs = ("segment_pair", "sentence_pair")
    if objective.pair == "none":
        inputs = ("doc_sentences", "full_sentences")
    elif config.model.segments < 2 and config.task.kind == "pretrain":
        count = f"has config.model.segments={config.model.segments}"
        instead = " or config.model.segments=2"
        remedies["objective.pair"] = (
            f"sentence pairs need 2 segments, but the model{_of(decided, 'segments')} "
            f"{count}; set --config.objective.pair=none"
            f"{'' if 'segments' in decided else instead}"
        )
    if objective.input not in ("auto", *inputs):
        remedies["objective.input"] = (
            f"with config.objective.pair={objective.pair} choose one of auto, "
            f"{', '.join(inputs)}"
        )
    if objective.span_boundary and objective.masking != "span":
        remedies["objective.span_boundary"] = "needs config.objective.masking=span"
    remedies |= _kind_problems(config, decided)
    shares = objective.mask_token_share, objective.random_token_share
    for name, share in zip(("mask", "random"), shares, strict=True):
        if not 0 <= share <= 1:
            path = f"objective.{name}_token_share"
            remedies[path] = "must lie between 0 and 1"
    if sum(shares) > 1:
        path = "objective.random_token_share"
        remedies.setdefault(path, "with mask_token_share must not exceed 1")
    return _faults(config, remedies)


def _kind_problems(config: Config, decided: Mapping[str, str]) -> dict[str, str]:
    """What masked, next and replaced tokens ask of the rest."""
    objective, model, remedies = config.objective, config.model, {}
    causal = model.mixer == "causal_attention"
    if config.task.kind != "pretrain":
        return remedies
    if objective.kind == "ltr" and not causal:
        path = "objective.kind"
        remedies[path] = "next tokens need config.model.mixer=causal_attention"
        if "mixer" in decided:
            remedies[path] += (
                f", but the model{_of(decided, 'mixer')} has {model.mixer}; set "
                "--config.objective.kind=mlm"
            )
    elif causal and objective.kind != "ltr":
        path = "model.mixer"
        remedies[path] = "sees no token to the right: needs config.objective.kind=ltr"
    if objective.kind != "mlm" and objective.pair != "none":
        path = "objective.pair"
        remedies[path] = f"must be none with config.objective.kind={objective.kind}"
    if objective.kind == "ltr" and objective.masking != "token":
        remedies["objective.masking"] = "must be token with config.objective.kind=ltr"
    if objective.kind == "rtd":
        small = model.narrowed(objective.generator_size)
        if not 0 < objective.generator_size <= 1 or min(small.hidden, small.mlp) < 1:
            path = "objective.generator_size"
            remedies[path] = "must be above 0 and at most 1, and leave a feature"
        elif small.hidden % small.heads:
            path = "objective.generator_size"
            remedies[path] = (
                f"makes hidden {small.hidden} and heads {small.heads}, which do not "
                "divide; choose another share"
            )
        if objective.span_boundary:
            remedies["objective.span_boundary"] = "needs config.objective.kind=mlm"
    return remedies


def _tuning_problems(config: Config) -> list[str]:
    remedies = {}
    if config.task.features and config.task.kind != "tag":
        remedies["task.features"] = "needs config.task.kind=tag"
    if config.task.lstm and (
        config.task.features or config.task.kind in ("pretrain", "encoder")
    ):
        remedies["task.lstm"] = (
            "is for fine-tuning, and config.task.features brings an LSTM of its own; "
            "set one of them alone"
        )
    if not 0 <= config.task.null_windows <= 1:
        remedies["task.null_windows"] = "must lie between 0 and 1"
    try:
        re.compile(config.optim.freeze)
    except re.error as error:
        remedies["optim.freeze"] = f"is no regular expression ({error})"
    unsaved = config.task.kind == "pretrain" and config.eval_every % config.save_every
    if config.patience and (unsaved or not config.keep_best):
        remedies["patience"] = (
            f"needs config.keep_best={config.keep_best} above 0 and config.save_every="
            f"{config.save_every} to divide config.eval_every={config.eval_every}"
        )
    elif config.patience and config.task.kind == "pretrain":
        if not config.data.eval_share:
            remedies["patience"] = "needs config.data.eval_share above 0"
    return _faults(config, remedies)


def _teaching_problems(config: Config) -> list[str]:
    settings, remedies = config.distill, {}
    if not settings.teacher:
        return []
    losses = "soft", "hard", "cosine", "hidden", "attention"
    if not any(getattr(settings, name) for name in losses):
        remedies["distill.soft"] = f"one of {', '.join(losses)} must be above 0"
    if min(settings.layers, default=1) < 1:
        remedies["distill.layers"] = "layers are counted from 1"
    if config.task.features:
        remedies["task.features"] = "a frozen encoder learns from no teacher"
    if config.task.kind == "pretrain" and config.objective.kind == "rtd":
        path = "objective.kind"
        remedies[path] = "teacher and student would draw other tokens; use mlm"
    return _faults(config, remedies)


def _of(decided: Mapping[str, str], name: str) -> str:
    """Return " of SETTING" for a field of the model that weights decide, else ""."""
    return f" of {decided[name]}" if name in decided else ""


def _faults(config: Config, remedies: dict[str, str]) -> list[str]:
    return [
        f"config.{path}={_get(config, path)!r}: {remedy}"
        for path, remedy in remedies.items()
    ]


def _phase_problems(config: Config, decided: Mapping[str, str]) -> list[str]:
    faults, limit = [], config.model.positions
    if not config.phases:
        return ["config.phases: at least one phase is needed"]
    if not math.isclose(sum(p.share for p in config.phases), 1.0, abs_tol=1e-6):
        shares = ", ".join(f"{p.share:g}" for p in config.phases)
        faults.append(f"config.phases[...].share: {shares} must add up to 1")
    for i, phase in enumerate(config.phases):
        where = f"config.phases[{i}]"
        if phase.length < 8:
            faults.append(f"{where}.length={phase.length}: must be at least 8")
        elif phase.length > limit:
            instead = "" if "positions" in decided else " or a larger positions"
            faults.append(
                f"{where}.length={phase.length}: longer than config.model.positions="
                f"{limit}{_of(decided, 'positions')}; set "
                f"'--config.phases[{i}].length={limit}'{instead}"
            )
        if phase.batch < 1 or phase.accumulate < 1 or phase.batch % phase.accumulate:
            faults.append(
                f"{where}.batch={phase.batch}: must be a positive multiple of "
                f"accumulate={phase.accumulate}"
            )
        if not 1 <= phase.max_packed <= 64:
            faults.append(
                f"{where}.max_packed={phase.max_packed}: 1 to 64 examples a row"
            )
        if not 0 < phase.share <= 1:
            faults.append(f"{where}.share={phase.share}: above 0, at most 1")
    return faults


def _mesh_problems(config: Config) -> list[str]:
    mesh = config.mesh
    sizes = {"data": mesh.data, "fsdp": mesh.fsdp, "model": mesh.model}
    faults = [
        f"config.mesh.{name}={size}: a positive number of devices, or -1 for the rest"
        for name, size in sizes.items()
        if size < 1 and size != -1
    ]
    if list(sizes.values()).count(-1) > 1:
        faults.append("config.mesh: only one axis may be -1")
    return faults
