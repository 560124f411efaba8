"""The models of transformers that can be read and written: names, sizes, classes.

A family is a table of names and a few facts; what is done with them is written once,
in `names` and `huggingface`.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from bert_jax.config import Model


class Name(NamedTuple):
    """One of our parameters and its name there, with the letters of its axes.

    V vocabulary, W the same padded, D hidden, E embedding, H heads, h features of a
    head, F feed-forward, P positions, S segments, C classes.
    """

    ours: str
    inputs: str  # letters of a kernel's inputs; "" of everything else
    outputs: str  # letters of the other axes
    theirs: str  # `{}` stands for the number of the layer


class Class(NamedTuple):
    """One of their classes."""

    task: str  # our kind
    parts: tuple[str, ...]  # of ours that it needs beside the encoder
    names: Mapping[str, str] = {}  # of its parts, where another class has others
    may: tuple[str, ...] = ()  # parts that it need not have


class Family(NamedTuple):
    """One of their architectures."""

    kind: str  # `model_type`
    title: str  # what the names of its classes begin with
    rows: str  # the table: a line for each part, of our name, its axes, their name
    classes: Mapping[str, Class]  # by the rest of their names; the largest come first
    decoder: str  # the output layer, whose weight is the embedding table
    sizes: Mapping[str, str]  # ours -> the key in config.json
    rates: Mapping[str, str]
    activations: Mapping[str, str]  # theirs -> ours; of the same, the first is written
    activation: str = "hidden_act"  # the key
    fixed: Mapping[str, object] = {}  # keys that may have no other value
    heads_dropout: tuple[str, ...] = ()  # keys of the dropout before a head
    pooler: str = "tanh"
    segments: tuple[int, int] = (1, 1 << 30)  # least and most
    narrow: tuple[bool, ...] = (False,)  # whether embeddings may have another width
    lead: bool = False  # its positions count from the id of the padding, plus 1
    pair: str = "nsp"  # what the head over sentence pairs tells

    def table(self, named: Mapping[str, str] | None = None) -> list[Name]:
        """Every parameter; `named` gives parts another name."""
        found: list[Name] = []
        for line in self.rows.strip().splitlines():
            ours, axes, theirs = re.split(" {2,}", line)
            theirs = (named or {}).get(ours, theirs)
            inputs, _, outputs = axes.rpartition(" > ")
            if inputs:
                found.append(
                    Name(f"{ours}/kernel", inputs, outputs, theirs + ".weight")
                )
                found.append(Name(f"{ours}/bias", "", outputs, theirs + ".bias"))
            elif ours.endswith("norm"):
                found.append(Name(f"{ours}/scale", "", axes, theirs + ".weight"))
                found.append(Name(f"{ours}/bias", "", axes, theirs + ".bias"))
            else:
                found.append(Name(ours, "", axes, theirs))
        return found


def narrow(model: Model) -> bool:
    """Whether the embeddings have another width than the layers."""
    return model.embedding not in (0, model.hidden)


_BERT = """
embeddings/token  W E  @.embeddings.word_embeddings.weight
embeddings/position  P E  @.embeddings.position_embeddings.weight
embeddings/segment  S E  @.embeddings.token_type_embeddings.weight
embeddings/norm  E  @.embeddings.LayerNorm
layers/attention/query  D > H h  @.encoder.layer.{}.attention.self.query
layers/attention/key  D > H h  @.encoder.layer.{}.attention.self.key
layers/attention/value  D > H h  @.encoder.layer.{}.attention.self.value
layers/attention/out  H h > D  @.encoder.layer.{}.attention.output.dense
layers/attention/norm  D  @.encoder.layer.{}.attention.output.LayerNorm
layers/mlp/up  D > F  @.encoder.layer.{}.intermediate.dense
layers/mlp/down  F > D  @.encoder.layer.{}.output.dense
layers/mlp/norm  D  @.encoder.layer.{}.output.LayerNorm
head  D > C  classifier
"""
_BERT_HEADS = """
pooler  D > D  bert.pooler.dense
mlm/transform  D > E  cls.predictions.transform.dense
mlm/norm  E  cls.predictions.transform.LayerNorm
mlm/bias  W  cls.predictions.bias
nsp  D > 2  cls.seq_relationship
"""
_ROBERTA_HEADS = """
pooler  D > D  roberta.pooler.dense
mlm/transform  D > E  lm_head.dense
mlm/norm  E  lm_head.layer_norm
mlm/bias  W  lm_head.bias
"""
_ELECTRA_HEADS = """
project  E > D  electra.embeddings_project
pooler  D > D  classifier.dense
mlm/transform  D > E  generator_predictions.dense
mlm/norm  E  generator_predictions.LayerNorm
mlm/bias  W  generator_lm_head.bias
rtd/transform  D > D  discriminator_predictions.dense
rtd/out  D > 1  discriminator_predictions.dense_prediction
"""
_ALBERT = """
embeddings/token  W E  albert.embeddings.word_embeddings.weight
embeddings/position  P E  albert.embeddings.position_embeddings.weight
embeddings/segment  S E  albert.embeddings.token_type_embeddings.weight
embeddings/norm  E  albert.embeddings.LayerNorm
project  E > D  albert.encoder.embedding_hidden_mapping_in
layers/attention/query  D > H h  *.attention.query
layers/attention/key  D > H h  *.attention.key
layers/attention/value  D > H h  *.attention.value
layers/attention/out  H h > D  *.attention.dense
layers/attention/norm  D  *.attention.LayerNorm
layers/mlp/up  D > F  *.ffn
layers/mlp/down  F > D  *.ffn_output
layers/mlp/norm  D  *.full_layer_layer_norm
pooler  D > D  albert.pooler
mlm/transform  D > E  predictions.dense
mlm/norm  E  predictions.LayerNorm
mlm/bias  W  predictions.bias
nsp  D > 2  sop_classifier.classifier
head  D > C  classifier
"""
_DISTILBERT = """
embeddings/token  W E  distilbert.embeddings.word_embeddings.weight
embeddings/position  P E  distilbert.embeddings.position_embeddings.weight
embeddings/norm  E  distilbert.embeddings.LayerNorm
layers/attention/query  D > H h  *.attention.q_lin
layers/attention/key  D > H h  *.attention.k_lin
layers/attention/value  D > H h  *.attention.v_lin
layers/attention/out  H h > D  *.attention.out_lin
layers/attention/norm  D  *.sa_layer_norm
layers/mlp/up  D > F  *.ffn.lin1
layers/mlp/down  F > D  *.ffn.lin2
layers/mlp/norm  D  *.output_layer_norm
pooler  D > D  pre_classifier
mlm/transform  D > E  vocab_transform
mlm/norm  E  vocab_layer_norm
mlm/bias  W  vocab_projector.bias
head  D > C  classifier
"""

_PRETRAINED = Class("pretrain", ("mlm", "nsp", "pooler"))
_CLASSES = {
    "ForMaskedLM": Class("pretrain", ("mlm",)),
    "ForSequenceClassification": Class("classify", ("head", "pooler")),
    "ForTokenClassification": Class("tag", ("head",)),
    "ForQuestionAnswering": Class("span", ("head",), {"head": "qa_outputs"}),
    "ForMultipleChoice": Class("choice", ("head", "pooler")),
    "Model": Class("encoder", (), may=("pooler",)),
}
_NO_POOLER = {"Model": Class("encoder", ())}
_OUT = {"head": "classifier.out_proj"}
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "positions": "max_position_embeddings",
    "segments": "type_vocab_size",
}
_RATES = {
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "norm_epsilon": "layer_norm_eps",
    "init_std": "initializer_range",
}
_ERF = {"gelu": "gelu", "gelu_python": "gelu"}
_ANY = {**_ERF, "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_ENCODER = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}

BERT = Family(
    kind="bert",
    title="Bert",
    rows=_BERT.replace("@", "bert") + _BERT_HEADS.strip(),
    classes={"ForPreTraining": _PRETRAINED, **_CLASSES},
    decoder="cls.predictions.decoder",
    sizes=_SIZES,
    rates=_RATES,
    activations=_ANY,
    fixed=_ENCODER,
)
ROBERTA = Family(  # Liu et al. 2019; its heads have the exact GELU, whatever hidden_act
    kind="roberta",
    title="Roberta",
    rows=_BERT.replace("@", "roberta") + _ROBERTA_HEADS.strip(),
    classes={
        **_CLASSES,
        "ForSequenceClassification": Class(
            "classify", ("head", "pooler"), {"pooler": "classifier.dense", **_OUT}
        ),
    },
    decoder="lm_head.decoder",
    sizes=_SIZES,
    rates=_RATES,
    activations=_ERF,
    fixed=_ENCODER,
    segments=(1, 1),
    lead=True,
)
ALBERT = Family(  # Lan et al. 2020
    kind="albert",
    title="Albert",
    rows=_ALBERT.replace("*", "albert.encoder.albert_layer_groups.{}.albert_layers.0"),
    classes={"ForPreTraining": _PRETRAINED, **_CLASSES},
    decoder="predictions.decoder",
    sizes={
        **_SIZES,
        "embedding": "embedding_size",
        "layer_groups": "num_hidden_groups",
    },
    rates=_RATES,
    activations={"gelu_new": "gelu_tanh", **_ANY},
    fixed={**_ENCODER, "inner_group_num": 1},
    heads_dropout=("classifier_dropout_prob",),
    narrow=(True,),
    pair="sop",
)
ELECTRA = Family(  # Clark et al. 2020; its heads have the exact GELU too
    kind="electra",
    title="Electra",
    rows=_BERT.replace("@", "electra") + _ELECTRA_HEADS.strip(),
    classes={
        "ForPreTraining": Class("pretrain", ("rtd",)),
        **_CLASSES,
        "ForSequenceClassification": Class("classify", ("head", "pooler"), _OUT),
        "ForMultipleChoice": Class(
            "choice", ("head", "pooler"), {"pooler": "sequence_summary.summary"}
        ),
        **_NO_POOLER,
    },
    decoder="generator_lm_head",
    sizes={**_SIZES, "embedding": "embedding_size"},
    rates=_RATES,
    activations=_ERF,
    fixed={
        **_ENCODER,
        "summary_type": "first",
        "summary_use_proj": True,
        "summary_activation": "gelu",
    },
    heads_dropout=("summary_last_dropout",),
    pooler="gelu",
    narrow=(False, True),
)
DISTILBERT = Family(  # Sanh et al. 2019
    kind="distilbert",
    title="DistilBert",
    rows=_DISTILBERT.replace("*", "distilbert.transformer.layer.{}"),
    classes={**_CLASSES, **_NO_POOLER},
    decoder="vocab_projector",
    sizes={
        "vocab_size": "vocab_size",
        "hidden": "dim",
        "layers": "n_layers",
        "heads": "n_heads",
        "mlp": "hidden_dim",
        "positions": "max_position_embeddings",
    },
    rates={
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "init_std": "initializer_range",
    },
    activations=_ANY,
    activation="activation",
    heads_dropout=("qa_dropout", "seq_classif_dropout"),
    pooler="relu",
    segments=(0, 0),
)
# The first that can hold a model takes it; a model with one segment is a RoBERTa.
FAMILIES = (ROBERTA, DISTILBERT, ALBERT, ELECTRA, BERT)
CLASSES = {
    family.title + suffix: (family, found)
    for family in FAMILIES
    for suffix, found in family.classes.items()
}
