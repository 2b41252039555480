"""The operations that a recurrent cell may have, by name; `register` adds one of your own.

    import torch
    import rnnnas

    rnnnas.operations.register("gelu_squared", lambda z: torch.nn.functional.gelu(z) ** 2)

An operation is a function f of a node's candidate z, element by element, of z's shape and type;
autograd differentiates it. `none`, of a space, is no operation: it leaves an edge out. Nothing
here imports torch before a function is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rnnnas.errors import UsageError, nearest
from rnnnas.plugins.load import MODULE, load_installed

if TYPE_CHECKING:
    from torch import Tensor

    Function = Callable[[Tensor], Tensor]

NONE = "none"
RECURRENT_OPS = (NONE, "tanh", "relu", "sigmoid", "identity")  # of DARTS, section 3.1.2
NAME = re.compile(r"[a-z]+(?:_[a-z]+)*")  # digits would run into a predecessor's number
RESERVED = (NONE, "concat", "join", "random", "lstm", "gru")  # words that mean something else
_COLOUR = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation. where: 'module:function', or the function. colour: '#rrggbb' of its edges."""

    name: str
    where: str | Callable[..., Any]
    colour: str = ""

    @property
    def function(self) -> Function:
        """f: (..., H) → (..., H)."""
        if not isinstance(self.where, str):
            return self.where
        module, _, name = self.where.partition(":")
        found: Function = getattr(import_module(module), name)
        return found


def identity(z: Any) -> Any:
    """z itself."""
    return z


_SHIPPED = {
    # Colour-blind safe (Okabe and Ito 2008); those that DARTS lacks are darker or paler.
    "tanh": ("torch:tanh", "#0072b2"),
    "relu": ("torch:relu", "#d55e00"),
    "sigmoid": ("torch:sigmoid", "#009e73"),
    "identity": ("rnnnas.nas.operations:identity", "#cc79a7"),
    "gelu": ("torch.nn.functional:gelu", "#8f3f00"),
    "silu": ("torch.nn.functional:silu", "#e69f00"),
    "sin": ("torch:sin", "#56b4e9"),
    "softsign": ("torch.nn.functional:softsign", "#004b75"),
    "leaky_relu": ("torch.nn.functional:leaky_relu", "#8a6d00"),
    "elu": ("torch.nn.functional:elu", "#6a3d9a"),
}
OPERATIONS: dict[str, Operation] = {
    name: Operation(name=name, where=where, colour=colour)
    for name, (where, colour) in _SHIPPED.items()
}
# Functions by name, as they were asked for: a lookup an operation of a time step must cost little.
_FUNCTIONS: dict[str, Callable[..., Any]] = {}


def register(name: str, function: Callable[[Tensor], Tensor], *, colour: str = "") -> str:
    """Make a function an operation that cells may have; returns its name.

    It is then known to spaces (`--set space.ops=...`), genotypes, drawings and checkpoints, which
    hold its name: whoever loads them registers it first, by a plug-in file or an import.

    Args:
        name: small letters, parts joined by '_'.
        function: of a tensor of candidates, element by element, with the same shape and type.
        colour: '#rrggbb' of its edges in drawings; by default one that goes with the name.

    Raises:
        UsageError: for a name that is taken or cannot be one, or what is no such function.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"{name!r} cannot be the name of an operation",
            f"take small letters, parts joined by '_', and none of {', '.join(RESERVED)}",
        )
    if name in _SHIPPED or (name in OPERATIONS and not _is_same(OPERATIONS[name].where, function)):
        raise UsageError(f"there is an operation {name!r} already", "give yours another name")
    if colour and not _COLOUR.fullmatch(colour):
        raise UsageError(f"colour {colour!r} is none", "write it as '#0072b2'")
    _check_function(name, function)
    OPERATIONS[name] = Operation(name=name, where=function, colour=colour)
    _FUNCTIONS.pop(name, None)
    return name


def _is_same(one: Any, other: Any) -> bool:
    """Whether both are one function, or one that a notebook's cell has defined again."""
    named = getattr(one, "__qualname__", ""), getattr(other, "__qualname__", None)
    modules = getattr(one, "__module__", ""), getattr(other, "__module__", None)
    return one is other or (named[0] == named[1] and modules[0] == modules[1])


def _check_function(name: str, function: Any) -> None:
    """Raises UsageError where `function` does not keep shape and type, element by element."""
    import torch

    if not callable(function):
        raise UsageError(f"operation {name!r} is {function!r}, no function of a tensor")
    for dtype in (torch.float32, torch.float64):
        z = torch.linspace(-2.0, 2.0, 6, dtype=dtype).view(2, 3)
        try:
            value = function(z)
        except Exception as error:
            raise UsageError(
                f"operation {name!r} fails on a tensor of {dtype}: {error}",
                "an operation takes one tensor and returns one of its shape and type",
            ) from error
        shape = value.shape if isinstance(value, torch.Tensor) else type(value).__name__
        if shape != z.shape or value.dtype != dtype:
            raise UsageError(
                f"operation {name!r} makes {shape} of a tensor of shape (2, 3) and {dtype}",
                "an operation returns a tensor of the shape and type that it is given",
            )
        alone = torch.stack([function(row[None])[0] for row in z.flatten()]).view(2, 3)
        if not torch.allclose(alone, value, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise UsageError(
                f"operation {name!r} depends on more than the element itself",
                "an operation acts on each element alone: no softmax, no normalisation",
            )


def names() -> tuple[str, ...]:
    """All operations that are registered; `none` is not among them."""
    return tuple(OPERATIONS)


def are_shipped(ops: Iterable[str]) -> bool:
    """Whether all these operations come with the package."""
    return all(op in _SHIPPED for op in ops)


def known_elsewhere(ops: Iterable[str]) -> bool:
    """Whether a process that loads the same plug-in files is sure to have all these operations: not
    those that a program or a notebook has registered.
    """
    wheres = {op: OPERATIONS[op].where for op in ops if op not in _SHIPPED}
    modules = (getattr(where, "__module__", None) or "" for where in wheres.values())
    return all(module.startswith(MODULE) for module in modules)


def is_known(name: str) -> bool:
    """Whether an operation is registered, perhaps by an installed package's plug-in."""
    return name in OPERATIONS or (load_installed() and name in OPERATIONS)


def check(name: str, what: str) -> None:
    """Refuse an operation that is not registered.

    Args:
        what: begins the sentence, such as "node 3".

    Raises:
        UsageError: which says how to get it.
    """
    if not is_known(name):
        raise UsageError(
            f"{what} uses {name!r}, which is no operation here{nearest(name, list(OPERATIONS))}",
            "name the file that registers it with --plugin FILE, or call "
            f"rnnnas.operations.register; known: {', '.join(OPERATIONS)}",
        )


def function_of(name: str) -> Function:
    """f of the operation `name`.

    Raises:
        UsageError: where it is not registered.
    """
    if name not in _FUNCTIONS:
        check(name, "a cell")
        _FUNCTIONS[name] = OPERATIONS[name].function
    return _FUNCTIONS[name]


def colour_of(name: str) -> str:
    """The colour '#rrggbb' that an operation asks for; empty where it does not, or is unknown."""
    return OPERATIONS[name].colour if name in OPERATIONS else ""
