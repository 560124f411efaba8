"""The model card: what a stranger must know of an exported model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.config import Config
from bert_jax.interop.families import CLASSES

_PIPELINES = {
    "pretrain": "fill-mask",
    "classify": "text-classification",
    "tag": "token-classification",
    "span": "question-answering",
    "encoder": "feature-extraction",
}


def card(
    config: Config,
    name: str,
    kind: str,
    summary: Mapping[str, Any],
    manifest: Mapping[str, Any],
    size: int,
) -> str:
    """A README.md in Hugging Face's form, filled from a run.

    Args:
      config: of the run.
      name: a title.
      kind: Hugging Face's class, such as `BertForMaskedLM`.
      summary: of the finished run; empty if it is not finished.
      manifest: of its token store; empty if there is none.
      size: parameters.
    """
    model, (family, _) = config.model, CLASSES[kind]
    tags = [f"language: {config.data.language}", "library_name: transformers"]
    # What tells replaced tokens is for fine-tuning; there is no pipeline for it.
    if config.task.kind in _PIPELINES and kind != "ElectraForPreTraining":
        tags.append(f"pipeline_tag: {_PIPELINES[config.task.kind]}")
    return "\n".join(
        [
            "---",
            *tags,
            f"tags:\n- {family.kind}\n- bert-jax",
            "---",
            f"# {name}\n",
            f"{family.title} with {model.layers} layers of {model.hidden} features, "
            f"{model.heads} attention heads, {model.positions} positions, "
            f"{model.vocab_size:,} tokens ({config.tokenizer.kind}) and {size:,} "
            "parameters, written by bert-jax.\n",
            "## Use\n",
            "```python",
            f"from transformers import AutoTokenizer, {kind}\n",
            'tokenizer = AutoTokenizer.from_pretrained("PATH")',
            f'model = {kind}.from_pretrained("PATH")',
            "```\n",
            "## Training\n",
            *_training(config, summary, manifest),
        ]
    )


def _training(
    config: Config, summary: Mapping[str, Any], manifest: Mapping[str, Any]
) -> list[str]:
    lines = []
    if config.init:
        lines.append(f"- Initial weights: {Path(config.init).name}")
    if manifest:
        lines.append(
            f"- Corpus: {', '.join(manifest['source'])}; "
            f"{manifest['documents']:,} documents, {manifest['tokens']:,} tokens"
        )
    steps = summary.get("steps")
    if steps is None:
        lines.append(f"- Steps: not finished, of {config.steps:,}")
    elif steps:
        shapes = ", then ".join(f"{p.batch} x {p.length}" for p in config.phases)
        lines.append(
            f"- Steps: {steps:,} with batches of {shapes} tokens; "
            f"{config.optim.name}, peak learning rate {config.optim.peak_rate:g}"
        )
    scores = {k: v for k, v in summary.items() if k.startswith("eval_")}
    numbers = {k: v for k, v in scores.items() if isinstance(v, float)}
    if numbers:
        lines += ["", "| held-out text | |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in numbers.items()]
    if not steps:
        return [*lines, ""]
    return [
        *lines,
        "\nThe settings are in `bert_jax_config.json`. To train it again:\n",
        "    bert-jax train --config=bert_jax_config.json --workdir=RUN\n",
    ]
