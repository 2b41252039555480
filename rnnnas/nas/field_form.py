"""Genotypes as the field's own programs print them, read without running anything.

`Genotype(recurrent=[('sigmoid', 0), ...], concat=range(1, 9))` of a recurrent cell, one pair a
node; `Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), reduce=...,
reduce_concat=...)` of image cells, two pairs a node (Liu, Simonyan, Yang, ICLR 2019). A name and
an equals sign may stand before it, and lines before that import what it needs or are comments.
"""

from __future__ import annotations

import ast
import re

from rnnnas.errors import UsageError
from rnnnas.nas.genotype import RECURRENT, CellGene, Gene, Genotype

FORM = "Genotype(recurrent=[('sigmoid', 0), ('relu', 1)], concat=range(1, 3))"
MOST_CHARACTERS = 20_000  # a published cell has some 300
_MOST_STATES = 1_000  # of a range
_BEGINS = re.compile(
    r"^[ \t]*(?:\w+[ \t]*(?::[ \t]*\w+[ \t]*)?=[ \t]*)?(?:\w+\.)*Genotype[ \t]*\(", re.MULTILINE
)


def is_field_form(text: str) -> bool:
    """Whether a line of a text begins as such a genotype does."""
    return _BEGINS.search(text) is not None


def from_field_form(text: str) -> Genotype:
    """The genotype that a text in the field's form stands for.

    Raises:
        UsageError: where it is none, naming the part that is not understood.
    """
    if len(text) > MOST_CHARACTERS:
        raise UsageError(
            f"a genotype of {len(text):,} characters is not read: {MOST_CHARACTERS:,} are the "
            "most, many times a published one",
            f"write it as {FORM}",
        )
    try:
        body = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = getattr(error, "msg", None) or type(error).__name__
        raise UsageError(f"the genotype is not understood: {why}", f"write it as {FORM}") from error
    body = [line for line in body if not _introduces(line)]
    if len(body) != 1 or not isinstance(body[0], (ast.Expr, ast.Assign, ast.AnnAssign)):
        raise UsageError("there must be one genotype, and nothing else", f"write it as {FORM}")
    call = body[0].value
    if not isinstance(call, ast.Call) or call.args:
        raise _not_understood(body[0])
    given = {str(word.arg): word.value for word in call.keywords}
    if set(given) in ({"recurrent"}, {"recurrent", "concat"}):
        return Genotype(cells={RECURRENT: _cell(given["recurrent"], given.get("concat"), 1)})
    if set(given) - {"normal_concat", "reduce_concat"} == {"normal", "reduce"}:
        return Genotype(
            cells={
                name: _cell(given[name], given.get(f"{name}_concat"), 2)
                for name in ("normal", "reduce")
            }
        )
    raise UsageError(
        f"a genotype has recurrent and concat, or normal, normal_concat, reduce and "
        f"reduce_concat, not {', '.join(given) or 'nothing'}",
        f"write it as {FORM}",
    )


def _introduces(line: ast.stmt) -> bool:
    """Whether it is an import, or says that a Genotype is a named tuple."""
    match line:
        case ast.Import() | ast.ImportFrom():
            return True
        case ast.Assign(value=ast.Call(func=ast.Name(id="namedtuple"))):
            return True
    return False


def _cell(edges: ast.expr, concat: ast.expr | None, inputs: int) -> CellGene:
    """A cell whose nodes have as many edges each as the cell has inputs."""
    if not isinstance(edges, (ast.List, ast.Tuple)):
        raise _not_understood(edges)
    genes = [_gene(edge) for edge in edges.elts]
    if len(genes) % inputs:
        raise UsageError(
            f"a cell has {len(genes)} edges, but every node takes {inputs}",
            "give each node its pairs of operation and predecessor",
        )
    nodes = tuple(tuple(genes[i : i + inputs]) for i in range(0, len(genes), inputs))
    states = range(inputs, inputs + len(nodes))
    return CellGene(nodes=nodes, concat=tuple(states) if concat is None else _states(concat))


def _gene(edge: ast.expr) -> Gene:
    match edge:
        case (
            ast.Tuple(elts=[ast.Constant(value=str(op)), ast.Constant(value=int(source))])
            | ast.List(elts=[ast.Constant(value=str(op)), ast.Constant(value=int(source))])
        ) if not isinstance(source, bool):
            return Gene(op, source)
    raise _not_understood(edge)


def _states(concat: ast.expr) -> tuple[int, ...]:
    match concat:
        case ast.Call(func=ast.Name(id="range"), args=args, keywords=[]) if 1 <= len(args) <= 3:
            bounds = [_number(bound) for bound in args]
            if len(bounds) < 3 or bounds[2]:
                states = range(*bounds)
                if len(states) <= _MOST_STATES:
                    return tuple(states)
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return tuple(_number(element) for element in elements)
        case ast.Call(func=ast.Name(id="list"), args=[inner], keywords=[]):
            return _states(inner)
    raise _not_understood(concat)


def _number(value: ast.expr) -> int:
    if isinstance(value, ast.Constant) and type(value.value) is int and value.value < 1 << 31:
        return value.value
    raise _not_understood(value)


def _not_understood(part: ast.AST) -> UsageError:
    text = ast.unparse(part)
    shown = text if len(text) < 60 else text[:60] + "..."
    return UsageError(f"{shown!r} is not understood in a genotype", f"write it as {FORM}")
