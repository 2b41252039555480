"""The weights of a language model in the order and form of the page, and the page's arithmetic.

Legend: a matrix is (rows, columns) with y = W x; B streams, H hidden, V vocabulary.

The page stores every matrix as int8 with a float32 scale a row, float16, or float32, one after
the other, and all vectors as float32. With int8 it rounds the vector that meets a matrix to
int16 in units of its largest entry / limit, so that sums are exact in int32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.exporting.packing import Dtype, packs, to_int8
from rnnnas.lm import lstm_gru
from rnnnas.lm.model import RecurrentLM
from rnnnas.nas.genotype import CellGene

Array = npt.NDArray[Any]
_ALIGNED = 16  # bytes


def int16_limit(columns: int) -> int:
    """The largest int16 entry of a vector whose product with int8 rows fits int32."""
    return min(32767, (2**31 - 1) // (127 * columns))


def matrices(net: RecurrentLM) -> dict[str, tuple[str, Tensor]]:
    """Every weight in the page's form: by its name there, its name in the network, and its value.

    Weights that stand to the right of their product come transposed: rows are outputs.
    """
    out: dict[str, tuple[str, Tensor]] = {}
    state = {name: value.detach() for name, value in net.state_dict().items()}
    out["embedding"] = "embedding", state["embedding"]
    out["bias"] = "bias", state["bias"]
    for k in range(net.config.layers):
        own = f"layers.{k + 1}."
        if isinstance(net.cell, str):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                out[f"{k}.{name}"] = own + name, state[own + name]
            continue
        own = "" if k == 0 else own
        out[f"{k}.first"] = own + "first", state[own + "first"].t()
        for i, node in enumerate(state[own + "nodes"]):
            out[f"{k}.node.{i}"] = own + "nodes", node.t()
    if net.config.softmaxes > 1:
        for i, projection in enumerate(state["projections"]):
            out[f"projection.{i}"] = "projections", projection.t()
        out["prior"] = "prior", state["prior"].t()
    return out


class Packing:
    """A growing table of tensors and the bytes they lie in.

    An entry: name, rows and cols (0 of a vector), dtype ("int8", "float16", "float32"), at (first
    byte) and of int8 scales (first byte of the float32 scales).
    """

    def __init__(self, dtype: Dtype) -> None:
        self.dtype = dtype
        self.table: list[dict[str, Any]] = []
        self.blob = bytearray()

    def _put(self, values: Array) -> int:
        self.blob.extend(bytes(-len(self.blob) % _ALIGNED))
        start = len(self.blob)
        self.blob.extend(values.tobytes())
        return start

    def put(self, name: str, value: Tensor, packs: bool) -> None:
        """Add a matrix (rows, cols) or a vector; packs: whether in fewer bits than float32."""
        rows, cols = (value.shape[0], value.shape[1]) if value.dim() == 2 else (len(value), 0)
        entry: dict[str, Any] = {"name": name, "rows": rows, "cols": cols, "dtype": "float32"}
        value = value.contiguous()
        if self.dtype == "float32" or not packs:
            entry["at"] = self._put(value.numpy().astype("<f4"))
        elif self.dtype == "float16":
            entry |= {"dtype": "float16", "at": self._put(value.numpy().astype("<f2"))}
        else:
            quantised, scale = to_int8("rows", value)
            entry |= {"dtype": "int8", "at": self._put(quantised.numpy())}
            entry["scales"] = self._put(scale.flatten().numpy().astype("<f4"))
        self.table.append(entry)

    @staticmethod
    def read_packed(entry: dict[str, Any], blob: bytes) -> tuple[Array, Array | None]:
        """A tensor of the table as stored (float16 widened), and its scales if it is int8."""
        rows, cols, kind = entry["rows"], entry["cols"], entry["dtype"]
        form = {"int8": "i1", "float16": "<f2", "float32": "<f4"}[kind]
        value: Array = np.frombuffer(blob, form, rows * max(cols, 1), entry["at"])
        value = value.reshape(rows, cols) if cols else value
        if kind == "int8":
            return value, np.frombuffer(blob, "<f4", rows, entry["scales"])
        return value.astype(np.float32), None

    @staticmethod
    def read(entry: dict[str, Any], blob: bytes) -> Array:
        """A tensor of the table as float32."""
        value, scale = Packing.read_packed(entry, blob)
        return value if scale is None else value.astype(np.float32) * scale[:, None]


def packed(net: RecurrentLM, dtype: Dtype) -> tuple[list[dict[str, Any]], bytes]:
    """The page's table of tensors and the bytes they lie in."""
    whole, made = dict(net.state_dict()), Packing(dtype)
    for name, (origin, value) in matrices(net).items():
        made.put(name, value, packs(origin, whole[origin]))
    return made.table, bytes(made.blob)


def shape_of(net: RecurrentLM) -> dict[str, Any]:
    """The network as plain values: what the page runs the weights through.

    Raises:
        UsageError: for an operation that the page has no rule for, as one of a plug-in.
    """
    cell: dict[str, Any]
    if isinstance(net.cell, CellGene):
        nodes = [[[gene.op, gene.source] for gene in node] for node in net.cell.nodes]
        foreign = sorted({gene.op for node in net.cell.nodes for gene in node} - set(_FORMS))
        if foreign:
            raise UsageError(
                f"the page has no rule for the operation {foreign[0]!r}",
                "take --format onnx, hf or pt2, which know every operation",
            )
        cell = {
            "type": "derived", "nodes": nodes, "join": net.cell.join,
            "concat": list(net.cell.concat),
        }  # fmt: skip
    else:
        cell = {"type": net.cell}
    return {
        "hidden": net.config.hidden, "layers": net.config.layers,
        "softmaxes": net.config.softmaxes, "cell": cell,
    }  # fmt: skip


class PageRunner:
    """The page's model, computed as the page does it, in numpy: for checking what was written.

    Args:
        shape: as `shape_of` gives it. table, blob: as `packed` gives them.
    """

    def __init__(self, shape: dict[str, Any], table: list[dict[str, Any]], blob: bytes) -> None:
        self.shape = shape
        self.tensors = {entry["name"]: Packing.read_packed(entry, blob) for entry in table}

    def times(self, name: str, x: Array) -> Array:
        """x (B, columns) → (B, rows)."""
        matrix, scale = self.tensors[name]
        if scale is None:
            return np.asarray(x @ matrix.T)
        unit = np.abs(x).max(1, keepdims=True) / int16_limit(x.shape[1])
        unit = np.where(unit > 0, unit, 1).astype(np.float32)
        exact = np.rint(x / unit).astype(np.float64) @ matrix.T.astype(np.float64)
        return np.asarray(exact.astype(np.float32) * scale * unit, np.float32)

    def __call__(self, token: Array, *states: Array) -> list[Array]:
        """token (B,), states (B, H) each → log p (B, V) and the next states."""
        embedding, scale = self.tensors["embedding"]
        x = embedding[token].astype(np.float32)
        x = x if scale is None else x * scale[token][:, None]
        after: list[Array] = []
        each = 1 if self.shape["cell"]["type"] == "derived" else lstm_gru.STATES[
            self.shape["cell"]["type"]
        ]  # fmt: skip
        for k in range(self.shape["layers"]):
            after += self._layer(k, x, list(states[k * each : (k + 1) * each]))
            x = after[-each]
        return [self._log_probs(x), *after]

    def _layer(self, k: int, x: Array, state: list[Array]) -> list[Array]:
        cell, h = self.shape["cell"], state[0]
        if cell["type"] == "derived":
            s = [_gated(h, self.times(f"{k}.first", np.concatenate([x, h], 1)), "tanh")]
            for i, node in enumerate(cell["nodes"]):
                parts = [
                    _gated(s[source], self.times(f"{k}.node.{i}", s[source]), op)
                    for op, source in node
                ]
                joined: Array = np.asarray(np.sum(parts, 0, dtype=np.float32))
                s.append(
                    np.asarray(joined / np.float32(len(parts) if cell["join"] == "mean" else 1))
                )
            return [np.asarray(np.mean([s[i] for i in cell["concat"]], 0, dtype=np.float32))]
        px = self.times(f"{k}.weight_ih", x) + self.tensors[f"{k}.bias_ih"][0]
        ph = self.times(f"{k}.weight_hh", h) + self.tensors[f"{k}.bias_hh"][0]
        if cell["type"] == "lstm":
            write, f, g, o = np.split(px + ph, 4, 1)
            c = _sigmoid(f) * state[1] + _sigmoid(write) * np.tanh(g)
            return [_sigmoid(o) * np.tanh(c), c]
        (xr, xz, xn), (hr, hz, hn) = np.split(px, 3, 1), np.split(ph, 3, 1)
        z = _sigmoid(xz + hz)
        return [(1 - z) * np.tanh(xn + _sigmoid(xr + hr) * hn) + z * h]

    def _log_probs(self, h: Array) -> Array:
        bias = self.tensors["bias"][0]
        if self.shape["softmaxes"] == 1:
            return _log_softmax(self.times("embedding", h) + bias)
        shares = _log_softmax(self.times("prior", h))
        parts = [
            _log_softmax(self.times("embedding", np.tanh(self.times(f"projection.{i}", h))) + bias)
            + shares[:, i : i + 1]
            for i in range(self.shape["softmaxes"])
        ]
        return np.asarray(np.logaddexp.reduce(parts))


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp of a large number: the sigmoid is 0
        return np.asarray(1 / (1 + np.exp(-x)))


_FORMS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda v: np.maximum(v, 0),
    "sigmoid": _sigmoid,
    "identity": lambda v: v,
}


def _gated(s: Array, product: Array, op: str) -> Array:
    c, z = np.split(product, 2, 1)
    return np.asarray(s + _sigmoid(c) * (_FORMS[op](z) - s))


def _log_softmax(x: Array) -> Array:
    x = x - x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))
