"""Tagged words as sequences: the first piece of a word carries its tag.

Devlin et al. 2019, section 5.3.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bert_jax.data.sequences import Sequences
from bert_jax.data.tagged import Sentence
from bert_jax.data.tokenizer import TextTokenizer
from bert_jax.errors import UserError


def tags_of(found: Sequence[Sentence]) -> tuple[str, ...]:
    """The distinct tags, `O` first."""
    tags = {tag for sentence in found for tag in sentence.tags}
    return ("O", *sorted(tags - {"O"}))


def encode(
    tokenizer: TextTokenizer,
    found: Sequence[Sentence],
    labels: Sequence[str],
    limit: int,
) -> tuple[Sequences, NDArray[np.int32], NDArray[np.int64]]:
    """Sentences as sequences; long ones become several, cut between words.

    Args:
      tokenizer: of the model.
      found: words and tags.
      labels: the model's tags; none at all for a file to be predicted, whose tags do
        not matter.
      limit: [tokens] of a sequence with [CLS] and [SEP]; of a longer word the rest is
        cut off.

    Returns:
      The sequences; int32 [T] the label of each token, -1 for those that do not count;
      int64 [W] of every word of all sentences the token that has its label, -1 for a
      word without any token.

    Raises:
      UserError: a tag did not occur in training.
    """
    vocabulary = tokenizer.vocabulary()
    number = {label: i for i, label in enumerate(labels)}
    ids, offset = tokenizer.encode_batch([w for s in found for w in s.words])
    token: list[int] = []
    label: list[int] = []
    ends, firsts, word = [0], [], 0
    for sentence in found:
        token.append(vocabulary.cls)
        label.append(-1)
        for text, tag in zip(sentence.words, sentence.tags, strict=True):
            if labels and tag not in number:
                raise UserError(
                    f"{sentence.where}: the tag {tag!r} of {text!r} did not occur in "
                    f"training, whose tags are {', '.join(labels)}; correct it, or "
                    "train with it in --config.task.labels"
                )
            pieces = ids[offset[word] : offset[word + 1]].tolist()[: limit - 2]
            if len(token) - ends[-1] + len(pieces) > limit - 1:
                token.append(vocabulary.sep)
                label.append(-1)
                ends.append(len(token))
                token.append(vocabulary.cls)
                label.append(-1)
            firsts.append(len(token) if pieces else -1)
            token += pieces
            label += [number.get(tag, -1), *[-1] * (len(pieces) - 1)][: len(pieces)]
            word += 1
        token.append(vocabulary.sep)
        label.append(-1)
        ends.append(len(token))
    sequences = Sequences(
        np.array(token, np.int32),
        np.zeros(len(token), np.int32),
        np.array(ends, np.int64),
        np.zeros((0, 2), np.int32),
        0,
    )
    return sequences, np.array(label, np.int32), np.array(firsts, np.int64)


def tags(
    logits: NDArray[np.float32], first: NDArray[np.int64], labels: Sequence[str]
) -> list[str]:
    """The tag of every word; `O`, or the first label, for a word without tokens.

    Args:
      logits: [T, C] of each token.
      first: [W] from `encode`.
      labels: of the classes.
    """
    best = logits.argmax(-1)[first]
    none = labels.index("O") if "O" in labels else 0
    return [labels[int(i)] for i in np.where(first >= 0, best, none)]
