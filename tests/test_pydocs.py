"""The embedded corpus: paragraphs, documents, splits, and what a stripped Python says."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from rnnnas.data import pydocs as module
from rnnnas.data.pydocs import docstrings, documents, paragraphs, pydocs, split, statements, topics
from rnnnas.errors import DataError


def test_paragraphs_become_lines_without_code_and_rules() -> None:
    document = """Title of it
***********

Don't "wrap" lines, or
  keep *marks* (ever).

Example here is kept:

>>> code(1)
output
>>> more

After the example, text.
-----------

Short one

    $ python -m thing and its arguments
"""
    assert list(paragraphs(document)) == [
        "Title of it",
        "Don't wrap lines , or keep marks ( ever ) .",
        "Example here is kept :",
        "After the example , text .",
    ]


def test_what_occurred_before_is_dropped() -> None:
    found = list(documents(["one two three\n\nfour five six", "four five six", "a b c\n\na b c"]))
    assert found == [["one two three", "four five six"], ["a b c"]]


def test_splits_take_whole_documents() -> None:
    found = split([[f"document {i}", "line"] for i in range(40)])
    lines = {name: list(text.lines()) for name, text in found.items()}
    assert lines["valid"] == ["document 18", "line", "document 38", "line"]
    assert lines["test"] == ["document 19", "line", "document 39", "line"]
    assert len(lines["train"]) == 2 * 36


def test_sources_are_read_and_never_imported(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text('"""Module one."""\nraise SystemExit\n')
    (tmp_path / "bad.py").write_text("def broken(:\n")
    (tmp_path / "odd.py").write_text('"""Escape \\d."""\nx = "\\d"\nclass A:\n    "Of A."\n')
    (tmp_path / "latin.py").write_bytes(b'# coding: latin-1\n"""Caf\xe9."""\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "t.py").write_text('"""A test."""')
    found = list(docstrings(tmp_path))
    assert found == ["Café.", "Escape \\d.", "Of A.", "Module one."]


NESTED = """
@decorated(lambda x: [y for y in x])
class A:
    def a(self): return lambda: 0
    class B:
        async def b(self):
            with c as d:
                def e(): pass
if f:
    def g(): pass
elif h:
    class I: pass
else:
    try:
        def j(): pass
    except K:
        def l(): pass
    else:
        def m(): pass
    finally:
        def n(): pass
for o in p:
    while q:
        def r(): pass
match s:
    case 1:
        def t(): pass
    case _:
        def u(): pass
def v(w=lambda: 1): x: int = 2
"""


def test_definitions_come_in_the_order_of_the_whole_tree() -> None:
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for text in (NESTED, Path(ast.__file__).read_text(encoding="utf-8")):
        tree = ast.parse(text)
        found = [node for node in statements(tree) if isinstance(node, kinds)]
        assert found == [node for node in ast.walk(tree) if isinstance(node, kinds)]
        assert len(found) > 12


def test_the_running_python_gives_a_corpus() -> None:
    texts, vocab, about = pydocs()
    words = {name: sum(len(line.split()) for line in text.lines()) for name, text in texts.items()}
    assert 250_000 < sum(words.values()) < 420_000
    assert min(words["valid"], words["test"]) > 8_000
    assert 6_000 < len(vocab) < 12_000
    assert about["python"] == ".".join(map(str, sys.version_info[:3]))
    train = set(texts["train"].lines())
    for name in ("valid", "test"):
        lines = list(texts[name].lines())
        assert not train.intersection(lines)
        found = vocab.encode(lines)
        assert found.unknown < 0.06 * found.words
    print(f"{sum(words.values()):,} words and marks, {len(vocab):,} entries")


def test_a_stripped_python_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="words of documentation") as caught:
        pydocs(tmp_path)
    assert "hmm" in caught.value.remedy
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="pydoc_data.topics is missing"):
        topics()
    assert module.NAME == "pydocs"
