"""The presets have as many parameters as transformers' own models of those sizes."""

import dataclasses
import math
from pathlib import Path

import jax
import pytest

from bert_jax import config
from bert_jax.interop import huggingface
from bert_jax.run import task_of
from tests.interop import hugging

CONFIGS = Path(__file__).parents[2] / "configs"


def _pretraining(family, layers, hidden, heads):
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden}
    sizes |= {"num_attention_heads": heads, "intermediate_size": 4 * hidden}
    return [(f"{family}ForPreTraining", sizes)]


# RoBERTa's table of positions begins with two rows that no token uses.
_ROBERTA = {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1}
_LARGE = {"num_hidden_layers": 24, "hidden_size": 1024}
_LARGE |= {"num_attention_heads": 16, "intermediate_size": 4096}
_BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_THIRD = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
_QUARTER = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256}
_TINY = {"num_hidden_layers": 4, "hidden_size": 312, "intermediate_size": 1200}
# Of each preset: class and sizes, of an ELECTRA those of both halves.
PRESETS = {
    "bert_tiny": _pretraining("Bert", 2, 128, 2),
    "bert_mini": _pretraining("Bert", 4, 256, 4),
    "bert_small": _pretraining("Bert", 4, 512, 8),
    "bert_medium": _pretraining("Bert", 8, 512, 8),
    "bert_base": _pretraining("Bert", 12, 768, 12),
    "bert_large": _pretraining("Bert", 24, 1024, 16),
    "roberta": [("RobertaForMaskedLM", _ROBERTA)],
    "roberta:large": [("RobertaForMaskedLM", _ROBERTA | _LARGE)],
    "albert": _pretraining("Albert", 12, 768, 12),
    "albert:large": _pretraining("Albert", 24, 1024, 16),
    "albert:xlarge": _pretraining("Albert", 24, 2048, 16),
    "electra": [
        ("ElectraForPreTraining", {}),
        ("ElectraForMaskedLM", _QUARTER),
    ],
    "electra:base": [
        ("ElectraForPreTraining", _BASE | {"embedding_size": 768}),
        ("ElectraForMaskedLM", _THIRD | {"embedding_size": 768}),
    ],
    "spanbert": [("BertForMaskedLM", {"vocab_size": 28_996})],
    "tinybert": [("BertForMaskedLM", _TINY)],
    "distilbert": [("DistilBertForMaskedLM", {})],
}


def _shapes(preset):
    """The settings and the parameters of a preset, without what pads its vocabulary."""
    name, _, size = preset.partition(":")
    settings = config.load(f"{CONFIGS / name}.py:{size}")
    model = dataclasses.replace(settings.model, vocab_multiple=1)
    settings = dataclasses.replace(settings, model=model)
    return settings, jax.eval_shape(task_of(settings).init, jax.random.key(0))


def _count(shapes):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _theirs(kind, settings):
    torch = hugging.torch()
    import transformers

    sizes = getattr(transformers, f"{hugging.family(kind)}Config")(**settings)
    with torch.device("meta"):
        model = getattr(transformers, kind)(sizes)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_as_many_as_in_transformers(preset):
    settings, shapes = _shapes(preset)
    shapes.pop("sbo", None)  # transformers has no span boundaries
    models = huggingface.halves(shapes, settings).values()
    ours = [_count(part) for _, part in models]
    if preset.startswith("roberta"):
        ours = [ours[0] + 2 * settings.model.hidden]
    assert ours == [_theirs(*model) for model in PRESETS[preset]]


def test_modern_has_those_of_modernbert_with_biases_and_one_norm():
    settings, shapes = _shapes("modern")
    names = "attention_bias", "mlp_bias", "norm_bias", "classifier_bias"
    theirs = _theirs("ModernBertForMaskedLM", dict.fromkeys(names, True))
    assert _count(shapes) == theirs + 2 * settings.model.hidden


def test_mamba_has_those_of_mambas_that_share_the_maps_in_and_out():
    """Two of transformers' in place of attention, and what a BERT has beside it."""
    torch = hugging.torch()
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    settings, shapes = _shapes("mamba")
    model = settings.model
    with torch.device("meta"):
        mixer = MambaMixer(MambaConfig(hidden_size=model.hidden, use_bias=True), 0)
    named = {name: p.numel() for name, p in mixer.named_parameters()}
    shared = [n for name, n in named.items() if name.startswith(("in_", "out_"))]
    mixed = 2 * sum(named.values()) - sum(shared)
    norm, hidden = model.hidden, model.hidden  # RMSNorm has scales alone
    mlp = 2 * hidden * model.mlp + model.mlp + hidden
    layers = model.layers * (mixed + norm + mlp + norm)
    embeddings, head = model.vocab_size * hidden + norm, hidden**2 + hidden + norm
    assert _count(shapes) == embeddings + layers + norm + head + model.vocab_size


def test_every_preset_is_compared():
    named = {name.split(":")[0] for name in PRESETS} | {"modern", "mamba"}
    others = {"glue", "ner", "quickstart", "squad", "swag"}
    assert {file.stem for file in CONFIGS.glob("*.py")} == named | others
