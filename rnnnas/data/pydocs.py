"""`pydocs`: the English documentation that every CPython carries, as a text corpus.

The language reference of `pydoc_data.topics` and the docstrings of the standard library, read from
source (never by importing a module). Nothing is downloaded and no text lies in the repository. What
the corpus holds depends on the Python it is read from, so the description records its version.

Text becomes tokens like this: code examples and ruled lines are dropped, a paragraph becomes one
line, and what remains of it are words (letters, digits, `_`, inner apostrophes; case is kept) and
the marks . , ; : ! ? ( ). A paragraph that occurred before is dropped, so that valid and test do
not repeat train. Of every 20 documents one is valid, one test. CPython 3.11 gives about 335,000
words and marks; 8,000 entries occur twice in train.
"""

from __future__ import annotations

import ast
import importlib
import platform
import re
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from rnnnas.data.text_files import Text, list_text
from rnnnas.data.vocab import Vocab, frequent_words
from rnnnas.errors import DataError

NAME = "pydocs"
EXCLUDED = frozenset(
    {
        *("test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "ensurepip"),
        *("site-packages", "dist-packages", "lib-dynload", "pydoc_data", "__phello__"),
    }
)
EVERY = 20  # documents; one of them is valid, one test
MIN_WORDS = 100_000  # a stripped Python has fewer: say so rather than train on scraps
MIN_PARAGRAPH = 3  # words; shorter ones are headings, signatures, leftovers of tables

_HOLDS_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
_WORD = re.compile(r"\w+(?:['’]\w+)*|[.,;:!?()]")
_CODE = re.compile(r"\s*(>>>|\.\.\. |\.\.\.$|\$ )")
_RULE = re.compile(r"\s*([-=*~^+|_#.]\s*){3,}$")


def topics() -> dict[str, str]:
    """The language reference by topic. Raises DataError where this Python lacks it."""
    try:
        found = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise _stripped("pydoc_data.topics is missing") from error
    return dict(found)


def docstrings(library: Path) -> Iterator[str]:
    """All docstrings of the modules under `library`, by path, then by place in the source."""
    for path in sorted(library.rglob("*.py")):
        if EXCLUDED.intersection(path.relative_to(library).parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in others' sources
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # templates and deliberately broken files are no documentation
        for node in statements(tree):
            if isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ) and (found := ast.get_docstring(node)):
                yield found


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """A module and all its statements in the order of `ast.walk`, without looking into expressions.

    They hold no definitions, and most of the nodes.
    """
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        yield node
        for field in node._fields:
            inner = getattr(node, field, None)
            if isinstance(inner, list) and inner and isinstance(inner[0], _HOLDS_STATEMENTS):
                waiting.extend(inner)


def paragraphs(document: str) -> Iterator[str]:
    """The paragraphs of a document, each one line of tokens separated by single spaces."""
    gathered: list[str] = []
    code = False
    for line in (*document.splitlines(), ""):
        if not line.strip():
            code = False
        code = code or _CODE.match(line) is not None  # and what the example prints, to the blank
        if line.strip() and not code and not _RULE.match(line):
            gathered.append(line)
            continue
        if gathered and not line.strip():
            tokens = _WORD.findall(" ".join(gathered))
            if sum(token[0].isalnum() for token in tokens) >= MIN_PARAGRAPH:
                yield " ".join(tokens)
            gathered = []


def documents(sources: Iterable[str]) -> Iterator[list[str]]:
    """The documents as lists of lines; a line that occurred before, in any of them, is left out."""
    seen: set[str] = set()
    for source in sources:
        fresh = [line for line in dict.fromkeys(paragraphs(source)) if line not in seen]
        seen.update(fresh)
        if fresh:
            yield fresh


def split(found: Iterable[list[str]]) -> dict[str, Text]:
    """Whole documents to splits: of every `EVERY`, the last to test, the one before to valid."""
    lines: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    places = {EVERY - 2: "valid", EVERY - 1: "test"}
    for number, document in enumerate(found):
        lines[places.get(number % EVERY, "train")].extend(document)
    return {name: list_text(f"{NAME} ({name})", kept) for name, kept in lines.items()}


def pydocs(library: Path | None = None) -> tuple[dict[str, Text], Vocab, dict[str, str]]:
    """The texts, their vocabulary, and what the description says of them.

    Args:
        library: the standard library's sources; by default those of the running Python.

    Raises:
        DataError: this Python carries no documentation or no sources.
    """
    where = library or Path(sysconfig.get_path("stdlib"))
    texts = split(documents((*topics().values(), *docstrings(where))))
    words = sum(len(line.split()) for text in texts.values() for line in text.lines())
    if words < MIN_WORDS:
        raise _stripped(f"its library holds {words:,} words of documentation")
    version = f"{platform.python_implementation()} {platform.python_version()}"
    return (
        texts,
        frequent_words(texts["train"].lines()),
        {
            "source": f"documentation of {version}",
            "python": platform.python_version(),
        },
    )


def _stripped(reason: str) -> DataError:
    return DataError(
        f"corpus {NAME}: this Python carries no documentation to read ({reason})",
        "Use a full installation of CPython, another corpus (hmm needs nothing), or your own text: "
        "rnnnas corpus add NAME --from FILE",
    )
