"""The resolved config: all that weights, teacher, tokenizer and files decide, once."""

from collections.abc import Callable

from bert_jax import config as configs
from bert_jax import initial, labelled, teacher
from bert_jax.config import Config
from bert_jax.data.tokenizer import TextTokenizer, load_tokenizer
from bert_jax.errors import UserError


def resolve(
    config: Config, read: Callable[..., labelled.Files] = labelled.read
) -> tuple[Config, labelled.Files | None]:
    """Return the config of a run with all that is decided elsewhere, and its examples.

    In this order: sizes and tokenizer of `init`, those of `distill.teacher`, the size
    of the vocabulary; then the rules; then labels, score and steps of labelled files.
    Nothing is written.

    Args:
      config: config as given.
      read: function that reads the files of `config.task`.

    Returns:
      The resolved config, and the examples of a task with labelled files.

    Raises:
      UserError: with all broken rules, or that a file or a model is missing or wrong.
    """
    return labelled_files(with_weights(config), read)


def labelled_files(
    config: Config, read: Callable[..., labelled.Files] = labelled.read
) -> tuple[Config, labelled.Files | None]:
    """Return the config with what labelled files decide, and their examples.

    Args:
      config: config from `with_weights`.
      read: function that reads the files of `config.task`.

    Raises:
      UserError: a file is missing or wrong.
    """
    if config.task.kind not in labelled.KINDS:
        return config, None
    tokenizer = own_tokenizer(config)
    files = read(config.task, encoding=config.data.encoding)
    span = config.task.kind == "span"
    return labelled.settle(config, files, tokenizer if span else None), files


def with_weights(config: Config) -> Config:
    """Return the config with what weights, teacher and tokenizer decide, checked.

    Raises:
      UserError: with all broken rules, or that a model is missing or does not fit.
    """
    named = f"config.distill.teacher={config.distill.teacher}"
    decided = dict.fromkeys(teacher.decides(config), named)
    if initial.source(config)[0]:
        named = f"config.init={config.init}"
        decided |= dict.fromkeys(initial.WEIGHTS_DECIDE, named)
    config = teacher.adopt(initial.adopt(config))
    if config.tokenizer.path:
        size = own_tokenizer(config).vocabulary().size
        if config.sized_elsewhere and size > config.model.vocab_size:
            raise UserError(
                f"config.tokenizer.path={config.tokenizer.path}: has {size} tokens, "
                f"more than the {config.model.vocab_size} of the weights; leave it "
                "unset to use their own tokenizer"
            )
        config = initial.fit_vocabulary(config, size)
    configs.check(config, decided)
    return config


def own_tokenizer(config: Config) -> TextTokenizer:
    """Return the tokenizer that the config names.

    Raises:
      UserError: it names none.
    """
    if not config.tokenizer.path:
        raise UserError(
            "config.tokenizer.path: not set; --config.init=DIR of a model brings its "
            "tokenizer along, or name one to train a model from scratch"
        )
    return load_tokenizer(config.tokenizer.path, config.tokenizer)
