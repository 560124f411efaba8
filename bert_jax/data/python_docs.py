"""English prose that every installation carries: its own documentation.

Docstrings of the standard library and of installed packages, and the help topics
of the interpreter. Sources are parsed, never imported, so that reading them runs
nobody's code. This is the corpus that `make pretrain` works on without a network.
"""

import ast
import functools
import importlib.util
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

# In this order, until the limit is reached; an absent one is passed over.
_PACKAGES = (
    "numpy jax flax optax orbax ml_collections scipy tokenizers etils absl chex "
    "pyarrow hypothesis pandas tensorflow_datasets tensorflow transformers torch keras"
).split()
_LIMIT = 8_000_000  # [characters]
_NOT_PROSE = re.compile(
    r"""
    \s*(>>>|\.\.\.)             # a session with the interpreter
    | \s*[-=~^*\#+_|.]{3,}       # a rule, a table
    | \s*\.\.[ ]                 # a reST directive
    | \s*:\w+[^:]*:(\s|$)        # a reST field
    | \s*@                       # a decorator
    | \s*[*\w]+(,[ ]*[*\w]+)*[ ]:[ ]  # a row of a NumPy parameter table
    """,
    re.VERBOSE,
)
_ROLE = re.compile(r":[\w:]+:`~?([^`<]*)[^`]*`")
_LINK = re.compile(r"`([^`<]*?)\s*<[^`>]*>`_+")
_TESTS = re.compile(r"(^|/)(tests?|testing|test_[^/]*|[^/]*_tests?\.py|idlelib)(/|$)")


@functools.cache  # small, and the trainer of a tokenizer reads it before the store
def documents() -> tuple[list[str], ...]:
    """One document for each help topic and each module with docstrings.

    Returns:
      Lists of paragraphs, the same for one installation every time, each paragraph
      once, about 8 MB in all where all the dependencies are installed.
    """
    seen: set[str] = set()
    found = []
    size = 0
    for texts in _modules():
        document = []
        for text in texts:
            for paragraph in _paragraphs(text):
                if paragraph not in seen:
                    seen.add(paragraph)
                    document.append(paragraph)
                    size += len(paragraph)
        if document:
            found.append(document)
        if size >= _LIMIT:
            break
    return tuple(found)


def _modules() -> Iterator[list[str]]:
    from pydoc_data import topics

    for _, text in sorted(topics.topics.items()):
        yield [text]
    places = [Path(sysconfig.get_path("stdlib"))]
    for name in _PACKAGES:
        # Finds the package wherever it is installed, and imports nothing.
        spec = importlib.util.find_spec(name)
        places += map(Path, (spec and spec.submodule_search_locations) or ())
    for place in places:
        for path in sorted(place.rglob("*.py")):
            name = path.relative_to(place).as_posix()
            if "site-packages" not in name and not _TESTS.search(name):
                yield _docstrings(path)


def _docstrings(path: Path) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        source = path.read_text("utf-8")
        if '"""' not in source and "'''" not in source:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return []  # samples of bad syntax are shipped on purpose
    nodes: list[ast.AST] = [tree]
    texts = []
    for node in nodes:  # grows while it is read: outer before inner
        if isinstance(node, kinds):
            text = ast.get_docstring(node, clean=False)
            texts += [text] if text else []
            nodes += [child for child in node.body if isinstance(child, kinds)]
    return texts


def _paragraphs(text: str) -> Iterator[str]:
    """The prose of a docstring: one line a paragraph, without code and markup."""
    text = _LINK.sub(r"\1", _ROLE.sub(r"\1", inspect.cleandoc(text)))
    code = False  # below a line that ends in "::", as long as it is indented
    for block in re.split(r"\n\s*\n", text):
        indented = block.startswith("    ")
        if code and indented:
            continue
        code = block.rstrip().endswith("::")
        lines = []
        for line in block.split("\n"):
            if line.lstrip().startswith(">>>"):
                break  # what follows is the interpreter's answer
            if not _NOT_PROSE.match(line):
                lines.append(line)
        paragraph = " ".join(" ".join(lines).replace("`", "").split())
        if _is_prose(paragraph):
            yield paragraph.removesuffix(":") if code else paragraph


def _is_prose(paragraph: str) -> bool:
    letters = sum(map(str.isalpha, paragraph)) + paragraph.count(" ")
    return paragraph.count(" ") >= 3 and letters > 0.8 * len(paragraph)
