"""Random models of transformers, and batches for both sides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.__main__ import main
from tests.conftest import IN_CI

TEXT = [
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "Pack my box with five dozen liquor jugs; the foxes jumped quickly.",
    "Caf\u00e9 na\u00efve words, unbelievable ``wording'' (again)! 1234 + 5678",
] * 9
TINY: dict[str, Any] = {  # every dimension another number, so that a swap shows
    "vocab_size": 301,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
ROBERTA = TINY | {"type_vocab_size": 1, "max_position_embeddings": 42}
ROBERTA |= {"layer_norm_eps": 1e-5}
ALBERT = TINY | {"num_hidden_layers": 6, "num_hidden_groups": 2, "embedding_size": 28}
ALBERT |= {"classifier_dropout_prob": 0.0}
ELECTRA = TINY | {"embedding_size": 28, "summary_last_dropout": 0.0}
DISTILBERT: dict[str, Any] = {
    "vocab_size": 301,
    "dim": 48,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 80,
    "max_position_embeddings": 40,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "qa_dropout": 0.0,
    "seq_classif_dropout": 0.0,
}
SETTINGS = {  # of every family, by what the names of its classes begin with
    "Bert": TINY,
    "Roberta": ROBERTA,
    "Albert": ALBERT,
    "Electra": ELECTRA,
    "DistilBert": DISTILBERT,
}
BASE: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def torch() -> Any:
    """PyTorch, or a skip where it is not installed; CI has it."""
    if IN_CI:
        import torch

        return torch
    return pytest.importorskip("torch", reason="needs PyTorch: extra `parity`")


def random_model(kind: str, settings: dict[str, Any], seed: int = 0) -> Any:
    """A model in evaluation mode whose every tensor is random, biases too."""
    pt = torch()
    import transformers

    pt.manual_seed(seed)
    sizes = getattr(transformers, f"{family(kind)}Config")
    model = getattr(transformers, kind)(sizes(**settings))
    with pt.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias") or "norm" in name.lower():
                tensor.add_(0.1 * pt.randn_like(tensor))
    return model.eval()


def family(kind: str) -> str:
    """What the name of a class begins with, such as `Bert`."""
    return kind.split("For")[0].removesuffix("Model")


def write_tokenizer(directory: Path, family: str, size: int) -> None:
    """The files of a family's own tokenizer, of at most `size` tokens."""
    if family == "Roberta":
        import tokenizers

        inner = tokenizers.Tokenizer(tokenizers.models.BPE())
        inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
        letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=letters,
            show_progress=False,
        )
        inner.train_from_iterator(TEXT, trainer)
        inner.model.save(str(directory))
    elif family == "Albert":
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text.lower() for text in TEXT),
            model_prefix=str(directory / "spiece"),
            vocab_size=size,
            hard_vocab_limit=False,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols=["[CLS]", "[SEP]"],
            user_defined_symbols=["[MASK]"],
            minloglevel=2,
        )
        (directory / "spiece.vocab").unlink()
    else:
        write_vocabulary(directory, size)


def write_vocabulary(directory: Path, size: int) -> None:
    """A vocab.txt of the special tokens and made-up words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"{'##' * (i % 3 == 0)}w{i}" for i in range(size - len(words))]
    (directory / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def saved(directory: Path, kind: str, settings: dict[str, Any], seed: int = 0) -> Any:
    """`random_model`, also written to a directory with a vocabulary."""
    model = random_model(kind, settings, seed)
    model.save_pretrained(directory)
    write_tokenizer(directory, family(kind), model.config.vocab_size)
    return model


def batch(size: int, rows: int, length: int, seed: int = 1) -> dict[str, np.ndarray]:
    """A batch of ours with ragged padding and two segments, every row one example."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(length // 3, length + 1, rows)
    ends[0] = length
    place = np.arange(length, dtype=np.int32) * np.ones((rows, 1), np.int32)
    real = place < ends[:, None]
    masked = np.stack([np.sort(rng.permutation(end)[: length // 8]) for end in ends])
    return {
        "token": np.where(real, rng.integers(5, size, place.shape), 0).astype(np.int32),
        "segment": (real & (place >= ends[:, None] // 2)).astype(np.int32),
        "position": place,
        "example": real.astype(np.int32),
        "mlm_position": masked.astype(np.int32),
        "mlm_label": rng.integers(5, size, masked.shape).astype(np.int32),
        "mlm_weight": np.ones(masked.shape, np.float32),
        "nsp_position": np.zeros((rows, 1), np.int32),
        "nsp_label": rng.integers(0, 2, (rows, 1)).astype(np.int32),
        "nsp_weight": np.ones((rows, 1), np.float32),
    }


def inputs(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same batch as transformers takes it."""
    pt = torch()
    return {
        "input_ids": pt.tensor(arrays["token"], dtype=pt.long),
        "token_type_ids": pt.tensor(arrays["segment"], dtype=pt.long),
        "attention_mask": pt.tensor(arrays["example"], dtype=pt.long),
    }


def labels(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The labels of a pretraining batch, as transformers takes them."""
    pt = torch()
    masked = np.full(arrays["token"].shape, -100)
    np.put_along_axis(masked, arrays["mlm_position"], arrays["mlm_label"], 1)
    return {
        "labels": pt.tensor(masked, dtype=pt.long),
        "next_sentence_label": pt.tensor(arrays["nsp_label"][:, 0], dtype=pt.long),
    }


def round_trip(source, folder):
    """A directory of transformers as a run, and that exported again."""
    run, out = folder / "run", folder / "out"
    assert main(["import", f"--source={source}", f"--workdir={run}"]) == 0
    assert main(["export", f"--workdir={run}", f"--output={out}"]) == 0
    return run, out
