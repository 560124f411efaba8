"""Run configuration: frozen dataclasses behind a ConfigDict front door."""

from bert_jax.config.load import check, freeze, load, to_config_dict, to_json
from bert_jax.config.schema import (
    Config,
    Data,
    Distill,
    Mesh,
    Model,
    Objective,
    Optim,
    Phase,
    TaskSettings,
    Tokenizer,
)
from bert_jax.config.validate import problems

__all__ = [
    "Config",
    "Data",
    "Distill",
    "Mesh",
    "Model",
    "Objective",
    "Optim",
    "Phase",
    "TaskSettings",
    "Tokenizer",
    "check",
    "freeze",
    "load",
    "problems",
    "to_config_dict",
    "to_json",
]
