"""Tokenizers in directories of transformers, built as its version 5 builds them.

There the class that a directory names builds the tokenizer anew from the vocabulary
and the options of tokenizer_config.json; of tokenizer.json it takes the vocabulary
alone. A class without rules of its own takes tokenizer.json as it is.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import pre_tokenizers

from bert_jax.data.subword_models import (
    albert,
    byte_bpe,
    frame,
    kind_of_content,
    read_vocabulary,
    special_of,
    unigram_vocabulary,
    word_piece,
)
from bert_jax.errors import UserError

_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
_OTHER_ROLES = ("bos_token", "eos_token")
_SPECIAL = re.compile(r"[\[<].*[\]>]")  # [CLS], <S>, [unused1]
_CASED_SHARE = 0.001  # of the pieces with letters; fewer capitals are noise
_CLASSES = {  # of the model types that are imported
    "bert": "BertTokenizer",
    "electra": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "albert": "AlbertTokenizer",
}
_JAPANESE = "BertJapaneseTokenizer"


class Directory(NamedTuple):
    """What a directory of transformers says of its tokenizer."""

    path: Path
    options: Mapping[str, Any]  # tokenizer_config.json
    content: Mapping[str, Any]  # tokenizer.json
    named: str  # the class
    lowercase: bool | None  # asked for by the user, who decides


def is_directory(path: Path) -> bool:
    """Whether a directory holds files that transformers wrote for a tokenizer."""
    if not path.is_dir() or (path / "tokenizer.model").is_file():
        return False
    if any(
        (path / n).is_file() for n in ("tokenizer_config.json", "added_tokens.json")
    ):
        return True
    return (path / "config.json").is_file() and "hidden_size" in _json(
        path / "config.json"
    )


def read(path: Path, lowercase: bool | None = None) -> tuple[Any, str, list[str]]:
    """The tokenizer of a directory of transformers.

    Args:
      path: the directory.
      lowercase: whether text is lowercased, in spite of the files; None for what they
        say.

    Returns:
      The tokenizer, its `kind`, and sentences on what was decided in reading it.

    Raises:
      UserError: a file is missing or damaged, or the class is not one that can be
        built here.
    """
    found = _describe(path, lowercase)
    build = _BUILDERS.get(found.named.removesuffix("Fast"))
    notes: list[str] = []
    if build:
        tokenizer, kind = build(found, notes)
    else:
        tokenizer, kind = _as_it_is(found)
    _add_tokens(tokenizer, found)
    return _all_recognised(tokenizer), kind, notes


def _describe(path: Path, lowercase: bool | None) -> Directory:
    options = _json(path / "tokenizer_config.json")
    model = _json(path / "config.json")
    model_type = model.get("model_type")
    named = options.get("tokenizer_class") or model.get("tokenizer_class")
    if not isinstance(named, str):
        named = _CLASSES.get(model_type if isinstance(model_type, str) else "", "")
    named = named or "BertTokenizer"
    if named == _JAPANESE or "word_tokenizer_type" in options:
        raise UserError(
            f"{path}: its tokenizer is {_JAPANESE}, which splits text into words with "
            "MeCab before WordPiece; bert-jax has no such step, and without it most "
            "words would be [UNK]. Choose a model with a tokenizer.json"
        )
    return Directory(path, options, _json(path / "tokenizer.json"), named, lowercase)


def _json(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no JSON object")
    return found


def _flag(found: Directory, name: str, default: bool | None) -> bool | None:
    value = found.options.get(name, default)
    if not isinstance(value, bool) and (value is not None or default is not None):
        raise UserError(
            f"{found.path / 'tokenizer_config.json'}: {name}={value!r} is neither true "
            "nor false"
        )
    return value


def _lowercase(
    found: Directory, notes: list[str], guess: Callable[[], tuple[bool, str]]
) -> bool:
    """Whether text is lowercased; a note says why."""
    stated = _flag(found, "do_lower_case", None)
    if found.lowercase is not None:
        value, why = found.lowercase, "as asked for"
    elif stated is not None:
        value, why = stated, "do_lower_case in tokenizer_config.json"
    elif found.content:
        value, why = True, "the default of transformers where no file says otherwise"
    else:
        value, why = guess()
    notes.append(_said(value, why))
    kept = json.dumps(found.content.get("normalizer"))
    if found.content and f'"lowercase": {str(not value).lower()}' in kept:
        notes[-1] += (
            f"; the normalizer of tokenizer.json has lowercase={not value}, which "
            f"{found.named} of transformers does not use"
        )
    return value


def _said(value: bool, why: str) -> str:
    letters = "uncased: text is lowercased" if value else "cased: text keeps capitals"
    return f"{letters} ({why}); --lowercase={str(not value).lower()} changes it"


def case_of(path: Path, tokens: Sequence[str]) -> tuple[bool, str]:
    """Whether a vocabulary without any statement is of lowercased text, and why.

    Args:
      path: the directory, whose name may say it.
      tokens: the vocabulary.
    """
    words = re.split(r"[^a-z]+", path.resolve().name.lower())
    for word in ("uncased", "cased"):
        if word in words:
            return word == "uncased", f"{word!r} in the name of the directory"
    pieces = [t for t in tokens if t.lower() != t.upper() and not _SPECIAL.fullmatch(t)]
    capitals = sum(piece != piece.lower() for piece in pieces)
    cased = capitals > _CASED_SHARE * len(pieces)
    return not cased, f"{capitals:,} of {len(pieces):,} pieces have a capital letter"


def note_case(
    path: Path, tokens: Sequence[str], asked: bool | None
) -> tuple[bool, str]:
    """As `case_of`, unless it is asked for, with a whole sentence."""
    value, why = case_of(path, tokens) if asked is None else (asked, "as asked for")
    return value, _said(value, why)


def _model(found: Directory, kind: str) -> Mapping[str, Any]:
    """The model in tokenizer.json, which must be of the class's kind."""
    model = found.content.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise UserError(f"{found.path / 'tokenizer.json'}: holds no model")
    if model.get("type", kind) != kind:
        raise UserError(
            f"{found.path}: tokenizer_class={found.named} has a {kind} model, but "
            f"tokenizer.json has {model['type']}; correct tokenizer_config.json, for "
            'example "tokenizer_class": "PreTrainedTokenizerFast"'
        )
    return model


def _bert(found: Directory, notes: list[str]) -> tuple[tokenizers.Tokenizer, str]:
    if found.content:
        vocabulary = dict(_model(found, "WordPiece")["vocab"])
    else:
        vocabulary = read_vocabulary(_needed(found, "vocab.txt"))
    lowercase = _lowercase(found, notes, lambda: case_of(found.path, list(vocabulary)))
    tokenizer = word_piece(
        vocabulary,
        lowercase,
        _flag(found, "strip_accents", None),
        bool(_flag(found, "tokenize_chinese_chars", True)),
    )
    return _framed(tokenizer), "wordpiece"


def _roberta(found: Directory, notes: list[str]) -> tuple[tokenizers.Tokenizer, str]:
    if found.content:
        model = _model(found, "BPE")
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        vocabulary, merges = dict(model["vocab"]), "\n".join(merges)
    else:
        vocabulary = _json(_needed(found, "vocab.json"))
        merges = _needed(found, "merges.txt").read_text("utf-8")
    tokenizer = byte_bpe(vocabulary, merges)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(_flag(found, "add_prefix_space", False))
    )
    return _framed(tokenizer, separators=2), "byte_bpe"


def _albert(found: Directory, notes: list[str]) -> tuple[tokenizers.Tokenizer, str]:
    if found.content:
        scores = [tuple(item) for item in _model(found, "Unigram")["vocab"]]
        normalizer = found.content.get("normalizer") or {}
        steps = normalizer.get("normalizers", [normalizer])
        charsmap = b"".join(
            base64.b64decode(step["precompiled_charsmap"])
            for step in steps
            if step.get("type") == "Precompiled"
        )
    else:
        scores, charsmap = unigram_vocabulary(
            _needed(found, "spiece.model").read_bytes()
        )
    tokenizer = albert(
        scores,
        charsmap,
        _lowercase(found, notes, lambda: (True, "the default of ALBERT")),
        bool(_flag(found, "keep_accents", False)),
    )
    return _framed(tokenizer), "unigram"


_BUILDERS: Mapping[str, Callable[..., tuple[tokenizers.Tokenizer, str]]] = {
    "BertTokenizer": _bert,
    "DistilBertTokenizer": _bert,
    "ElectraTokenizer": _bert,
    "RobertaTokenizer": _roberta,
    "AlbertTokenizer": _albert,
}


def _needed(found: Directory, name: str) -> Path:
    file = found.path / name
    if not file.is_file():
        raise UserError(
            f"{found.path}: no tokenizer.json or {name} there; its tokenizer, "
            f"{found.named}, needs one of them"
        )
    return file


def _framed(tokenizer: tokenizers.Tokenizer, separators: int = 1) -> Any:
    names = special_of(list(tokenizer.get_vocab(with_added_tokens=False)))
    if all(names):
        frame(tokenizer, names, separators)
    return tokenizer


def _as_it_is(found: Directory) -> tuple[tokenizers.Tokenizer, str]:
    if not found.content:
        raise UserError(
            f"{found.path}: its tokenizer_class {found.named} is not known here, "
            "and there is no tokenizer.json to read instead; known are "
            + ", ".join(_BUILDERS)
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(found.content))
        return tokenizer, kind_of_content(found.content)
    except Exception as error:  # what is in the file may be anything
        raise UserError(
            f"{found.path / 'tokenizer.json'}: no tokenizer is read from it ({error})"
        ) from None


def _add_tokens(tokenizer: tokenizers.Tokenizer, found: Directory) -> None:
    """Adds the tokens of all files in the order of their ids.

    Raises:
      UserError: an id is another than the tokenizer gives, or a role is another
        token's than the one that the vocabulary has for it.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    roles, stated = _tokens_of(found, list(vocabulary))
    names = special_of([*vocabulary, *(t.content for t in stated.values())])
    for role, name in zip(_ROLES, names, strict=True):
        own = roles.get(role)
        if own is not None and own.content not in (name, "") and name:
            raise UserError(
                f"{found.path}: {role}={own.content!r}, but the vocabulary has {name}, "
                "which is taken for it here; a model with other names for its special "
                "tokens cannot be read"
            )
    known = {token.content for token in roles.values()}
    for index, token in sorted(stated.items()):
        token.special = token.special or token.content in known
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != index:
            raise UserError(
                f"{found.path}: the added token {token.content!r} has the id {index} "
                f"by its file, but {tokenizer.token_to_id(token.content)} follows from "
                "the vocabulary; a vocabulary file is cut short, or the added tokens "
                "are another model's"
            )
    present = {token.content for token in stated.values()}
    there = tokenizer.get_vocab(with_added_tokens=True)
    for token in roles.values():
        if token.content not in present and token.content in there:
            tokenizer.add_tokens([token])
    for token in _listed(found.options):
        if token.content not in present:
            tokenizer.add_tokens([token])


def _tokens_of(
    found: Directory, vocabulary: list[str]
) -> tuple[dict[str, tokenizers.AddedToken], dict[int, tokenizers.AddedToken]]:
    """Special tokens by role, and added tokens by id, from whichever file has them."""
    options, path = found.options, found.path
    decoder = options.get("added_tokens_decoder")
    stated: dict[int, tokenizers.AddedToken] = {}
    values = dict(options)
    try:
        if isinstance(decoder, dict):
            stated = {int(i): _token(token) for i, token in decoder.items()}
        else:
            values |= _json(path / "special_tokens_map.json")
            for name, i in _json(path / "added_tokens.json").items():
                stated[int(i)] = _token({"content": name, "special": False})
            for token in found.content.get("added_tokens", []):
                stated[int(token["id"])] = _token(token)
        roles = {
            role: _token(values[role], special=True)
            for role in (*_ROLES, *_OTHER_ROLES)
            if values.get(role) is not None
        }
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: its added or special tokens cannot be read ({error!r}); each is "
            "a text, or an object with its content"
        ) from None
    by_content = {token.content: token for token in stated.values()}
    roles = {role: by_content.get(t.content, t) for role, t in roles.items()}
    names = special_of([*by_content, *vocabulary])
    for role, name in zip(_ROLES, names, strict=True):
        if role not in roles and name:
            default = tokenizers.AddedToken(name, special=True)
            roles[role] = by_content.get(name, default)
    return roles, stated


def _listed(options: Mapping[str, Any]) -> list[tokenizers.AddedToken]:
    listed = options.get("extra_special_tokens")
    listed = listed or options.get("additional_special_tokens") or []
    tokens = listed.values() if isinstance(listed, dict) else listed
    return [_token(token, special=True) for token in tokens]


def _token(value: Any, special: bool | None = None) -> tokenizers.AddedToken:
    if isinstance(value, str):
        return tokenizers.AddedToken(value, special=bool(special))
    flags = {
        name: value[name]
        for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
        if name in value
    }
    if special:
        flags["special"] = True
    return tokenizers.AddedToken(value["content"], **flags)


def _all_recognised(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Tokens added beside those of the five roles are found in any text.

    Those of the roles are not: a text that holds "[SEP]" is a text.
    """
    content = json.loads(tokenizer.to_str())
    names = special_of(list(tokenizer.get_vocab(with_added_tokens=True)))
    others = [
        token
        for token in content["added_tokens"]
        if token["special"] and token["content"] not in names
    ]
    for token in others:
        token["special"] = False
    return tokenizers.Tokenizer.from_str(json.dumps(content)) if others else tokenizer
