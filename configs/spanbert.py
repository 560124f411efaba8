"""SpanBERT: masked spans, predicted from their boundaries too, without sentence pairs.

Command: python -m bert_jax train --config=configs/spanbert.py --workdir=runs/spanbert
Variants: :cpu (short rows and small batches), :smoke (seconds).

Weight decay is that of the authors' command, as in BERT; the paper's text has 0.1. What
differs: positions inside a span have embeddings as wide as the model, not of 200
features, and any number of them is predicted, not the first 15 of a span.
"""

from bert_jax.config import presets


def get_config(arg: str = ""):
    """The config, by Joshi et al. 2020, sections 3 and 4.2, and their command."""
    config = presets.bert("base")
    config.steps = 2_400_000
    config.objective.update(pair="none", input="doc_sentences", short_seq_prob=0.0)
    config.objective.update(masking="span", span_boundary=True)
    config.tokenizer.lowercase = False
    config.model.update(vocab_size=28_996, activation="gelu")
    config.optim.update(peak_rate=1e-4, warmup_share=10_000 / config.steps)
    config.optim.epsilon = 1e-8
    config.phases = config.phases[:1]
    config.phases[0].update(share=1.0, length=512, batch=256)
    return presets.variants(config, arg, without=("paper",))
