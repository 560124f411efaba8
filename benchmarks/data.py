"""Input pipeline against Hugging Face's masking collator, on the same rows.

Both make masked batches of the same token ids in one process, in turns; ours also
gathers, packs and pairs them, and runs through the iterator that training uses.

Command: python benchmarks/data.py --store=RUN/store [--length=128] [--rounds=7]
Prints one JSON object: real tokens a second of each (median) and the median ratio.
"""

import argparse
import json
import statistics
import time

import numpy as np

from bert_jax.config import Config, Phase
from bert_jax.data.pipeline import Batches, iterate
from bert_jax.data.store import open_store


def collator(vocab_size: int):
    """transformers' collator over a tokenizer that knows only ids."""
    from tokenizers import Tokenizer, models
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*specials, *(f"w{i}" for i in range(vocab_size - len(specials)))]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    return DataCollatorForLanguageModeling(tokenizer, return_tensors="np")


def rate(work, tokens: int) -> float:
    """Tokens a second of one call."""
    began = time.perf_counter()
    work()
    return tokens / (time.perf_counter() - began)


def main() -> None:
    """Measures in turns and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True, help="token store directory")
    parser.add_argument("--length", type=int, default=128, help="tokens in a row")
    parser.add_argument("--rounds", type=int, default=7, help="paired measurements")
    args = parser.parse_args()
    store = open_store(args.store)
    rows = 32_768 // args.length
    phase = Phase(length=args.length, batch=rows)
    batches = Batches(store, Config(phases=(phase,)), 0)
    count = 200
    stream = iterate(batches.batch, 0, 1 << 40)
    for _ in range(8):
        next(stream)

    def ours() -> None:
        for _ in range(count):
            next(stream)

    collate = collator(store.vocabulary.size)
    batch = batches.batch(0)
    features = [{"input_ids": row} for row in batch["token"].tolist()]
    real = int(np.count_nonzero(batch["example"]))

    def theirs() -> None:
        for _ in range(4):
            collate(features)

    pairs = [
        (rate(ours, count * real), rate(theirs, 4 * real)) for _ in range(args.rounds)
    ]
    result = {
        "length": args.length,
        "fill": real / batch["example"].size,
        "real_tokens_per_second": statistics.median(a for a, _ in pairs),
        "collator_tokens_per_second": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
