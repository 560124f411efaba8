"""The published BERT sizes and recipes, as edits of the default config.

Sizes: Devlin et al. 2019, section 3 (base, large) and Turc et al. 2019 (the
miniatures). The recipe is that of Devlin et al. 2019, appendix A.2.
"""

import copy
import dataclasses
from collections.abc import Iterable

from ml_collections import ConfigDict

from bert_jax.config.load import to_config_dict
from bert_jax.config.schema import Config, Model, Phase
from bert_jax.errors import UserError

SIZES = {  # layers, hidden; heads are hidden / 64 and mlp is 4 * hidden
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


def model(size: str) -> Model:
    """The architecture of one published size."""
    layers, hidden = SIZES[size]
    return Model(layers=layers, hidden=hidden, heads=hidden // 64, mlp=4 * hidden)


def bert(size: str, arg: str = "") -> ConfigDict:
    """BERT of a published size, 128 then 512 tokens, ready to be edited.

    Args:
      size: a key of `SIZES`.
      arg: the text after the colon in `--config=FILE:arg`: any of `paper`, `cpu`
        and `smoke`, separated by commas.

    Returns:
      A locked ConfigDict.

    Raises:
      UserError: `arg` holds another word.
    """
    config = Config(
        model=model(size),
        phases=(Phase(share=0.9, length=128), Phase(share=0.1, length=512)),
    )
    return variants(to_config_dict(config), arg)


def variants(
    config: ConfigDict, arg: str, sizes: Iterable[str] = (), without: Iterable[str] = ()
) -> ConfigDict:
    """Applies the comma-separated variants, such as `paper,smoke`, to a config.

    Args:
      config: to be edited.
      arg: the variants.
      sizes: other words that may be among them, for `size`.
      without: variants that this config does not have.

    Returns:
      The same config.

    Raises:
      UserError: `arg` holds another word.
    """
    edits = {"paper": paper, "cpu": cpu, "smoke": smoke}
    edits = {word: edits[word] for word in edits if word not in without}
    known = (*sizes, *edits)
    for word in filter(None, arg.split(",")):
        if word not in known:
            raise UserError(
                f"--config=...:{arg}: unknown variant {word!r}; use {', '.join(known)}"
            )
        if word in edits:
            edits[word](config)
    return config


def size(arg: str, sizes: Iterable[str]) -> str:
    """The last of the sizes that is named in `arg`, or else the first there is."""
    named = [word for word in arg.split(",") if word in sizes]
    return [*list(sizes)[:1], *named][-1]


def paper(config: ConfigDict) -> None:
    """The choices of the original TensorFlow code, where ours differ."""
    config.optim.bias_correction = False
    config.optim.decay_from = "start"
    config.objective.mask_count = "nearest"
    for phase in config.phases:
        phase.max_packed = 1


def cpu(config: ConfigDict) -> None:
    """Brings a small model to useful scores within an hour on a few cores.

    A run of few tokens learns nothing but word frequencies until attention to
    neighbours sets in. Short rows, small batches, a small vocabulary, larger initial
    weights and a high learning rate, lower the wider the layers, bring that forward.
    """
    config.steps = 10_000
    config.log_every, config.eval_every, config.save_every = 100, 1_000, 1_000
    config.model.update(vocab_size=8192, init_std=0.05, dtype="float32")
    config.model.update(dropout=0.0, attention_dropout=0.0)
    rate = min(2e-3, 0.256 / config.model.hidden)
    config.optim.update(peak_rate=rate, warmup_share=0.08, beta2=0.98)
    config.model.positions = 128
    # The positions beyond 48 start untrained, which takes more than a tenth.
    config.phases = (config.phases[0], copy.deepcopy(config.phases[-1]))
    config.phases[0].update(share=0.5, length=48, batch=64)
    config.phases[1].update(share=0.5, length=128, batch=32)


def smoke(config: ConfigDict) -> None:
    """Shrinks a config until it runs in seconds on a laptop."""
    config.steps = 8
    config.log_every, config.eval_every, config.save_every = 2, 4, 4
    config.data.eval_rows = 16
    config.data.eval_share = 0.1
    config.tokenizer.train_bytes = 1_000_000
    config.model.update(vocab_size=2048, layers=2, hidden=32, heads=2, mlp=64)
    config.model.dtype = "float32"
    for phase in config.phases:
        phase.length, phase.batch = min(phase.length, 64), 8


# Columns of the text, its pair and the label, by their names in GLUE's own files and in
# TensorFlow Datasets, and the official score.
GLUE = {
    "cola": ("3|sentence", "", "1|label", "matthews"),
    "sst2": ("sentence", "", "label", "accuracy"),
    "mrpc": ("#1 String|sentence1", "#2 String|sentence2", "Quality|label", "f1"),
    "stsb": ("sentence1", "sentence2", "score|label", "pearson"),
    "qqp": ("question1", "question2", "is_duplicate|label", "f1"),
    "mnli": (
        "sentence1|premise",
        "sentence2|hypothesis",
        "gold_label|label",
        "accuracy",
    ),
    "qnli": ("question", "sentence", "label", "accuracy"),
    "rte": ("sentence1", "sentence2", "label", "accuracy"),
    "wnli": ("sentence1", "sentence2", "label", "accuracy"),
}


def glue(arg: str) -> ConfigDict:
    """Fine-tuning on a GLUE task, by the recipe of Devlin et al. 2019, section 4.1.

    Args:
      arg: a key of `GLUE`, `smoke` too, separated by commas; no task for other files.

    Returns:
      A locked ConfigDict; `init` is left to be set, and without a task the files.

    Raises:
      UserError: no such task.
    """
    config = to_config_dict(Config(phases=(Phase(length=128, batch=32),)))
    config.optim.update(peak_rate=3e-5, warmup_share=0.1)
    config.log_every, config.keep_last = 50, 1
    config.task.kind = "classify"
    for word in filter(None, arg.split(",")):
        if word in GLUE:
            names = ("text_column", "pair_column", "label_column", "score")
            config.task.update(dict(zip(names, GLUE[word], strict=True)))
            config.task.kind = "regress" if word == "stsb" else "classify"
            config.task.glue = word
            config.task.skip_label = "-" if word == "mnli" else ""
        elif word == "smoke":
            smoke(config)
        else:
            known = ", ".join((*GLUE, "smoke"))
            raise UserError(f"--config=...:{arg}: unknown {word!r}; use {known}")
    return config


def replace(config: Config, **edits) -> Config:
    """`dataclasses.replace` that reaches into groups: `optim={"name": "lamb"}`."""
    for name, edit in edits.items():
        if isinstance(edit, dict):
            edits[name] = dataclasses.replace(getattr(config, name), **edit)
    return dataclasses.replace(config, **edits)
