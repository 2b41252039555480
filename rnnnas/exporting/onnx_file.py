"""ONNX: one step of a language model, a scan over a chunk of text, or an image network.

Legend: T steps, B streams or images, V vocabulary, K classes.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rnnnas.errors import UsageError

BATCH = "batch"
OPSETS = (18, 23)  # what the exporter can write and onnxruntime can read, both ends included
_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
# Where a node's name in Python is noted: paths of this machine, and a tenth of a small file.
_NOISE = ("metadata_props", "doc_string")


def check_installed() -> None:
    """Raises UsageError where a library that ONNX needs is not installed."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"export to ONNX needs {', '.join(missing)}, not installed here",
            "pip install 'rnnnas[export]'",
        )


def check_opset(opset: int) -> None:
    """Raises UsageError where no file of this opset can be written."""
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise UsageError(
            f"--opset {opset} cannot be written", f"give one from {OPSETS[0]} to {OPSETS[1]}"
        )


def write_onnx(
    path: Path,
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    opset: int,
    metadata: Mapping[str, object],
    scan: bool = False,
) -> None:
    """Write a module whose inputs and outputs have the batch as their first dimension.

    Args:
        examples: one tensor an input, with a batch of at least two; no two may share memory, or
            the exporter takes them for one input.
        scan: run the step that the module is over all T of its first input, which becomes
            (T, B), as its first output does; the other inputs are states.
    """
    import onnx

    batch = torch.export.Dim(BATCH)
    args = tuple(example.clone() for example in examples)
    shapes: tuple[Any, ...] = tuple({0: batch} for _ in args)
    if len(args) > 1:  # the module takes its states as *states
        shapes = (shapes[0], shapes[1:])
    with _quiet():
        program = torch.onnx.export(
            module, args, dynamo=True, opset_version=opset, dynamic_shapes=shapes,
            input_names=list(inputs), output_names=list(outputs), verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    _strip(model.graph)
    if scan:
        model = _scanned(model)
    model.producer_name, model.producer_version = "rnnnas", str(metadata.get("version", ""))
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        model.metadata_props.add(key=key, value=text)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the exporter says of itself (operators of torchvision, its own progress) away."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(graph: Any) -> None:
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        for field in _NOISE:
            if field in item.DESCRIPTOR.fields_by_name:
                item.ClearField(field)


def _scanned(step: Any) -> Any:
    """A model that runs `step` over the first dimension of its first input, by ONNX's Scan.

    What depends on weights alone, such as widening them, stays outside of the loop.
    """
    from onnx import TensorProto, helper

    graph = step.graph
    moving = {value.name for value in graph.input}
    inside, outside = [], []
    for node in graph.node:
        if moving.intersection(node.input):
            moving.update(node.output)
            inside.append(node)
        else:
            outside.append(node)
    token, *states = graph.input
    log_probs, *after = graph.output
    body = helper.make_graph(inside, "step", [*states, token], [*after, log_probs])
    # The loop's own names must differ from those inside it.
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["time", BATCH])
    begins: list[Any] = []
    ends: list[Any] = []
    for value, rows in ((states, begins), (after, ends)):
        for one in value:
            copied = type(one)()
            copied.CopyFrom(one)
            rows.append(copied)
    words = log_probs.type.tensor_type.shape.dim[1].dim_value
    scores = helper.make_tensor_value_info(
        log_probs.name, TensorProto.FLOAT, ["time", BATCH, words]
    )
    renamed = _renamed(body)
    scan = helper.make_node(
        "Scan", [*(s.name for s in begins), "tokens"], [*(s.name for s in ends), scores.name],
        num_scan_inputs=1, body=renamed,
    )  # fmt: skip
    whole = helper.make_graph(
        [*outside, scan], "chunk", [tokens, *begins], [scores, *ends],
        initializer=list(graph.initializer),
    )  # fmt: skip
    made = helper.make_model(whole, opset_imports=step.opset_import, ir_version=step.ir_version)
    made.functions.extend(step.functions)
    return made


def _renamed(body: Any) -> Any:
    """The body of a loop, its inputs and outputs under names that the graph around has not."""
    names = {value.name: f"each_{value.name}" for value in (*body.input, *body.output)}
    for node in body.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    for value in (*body.input, *body.output):
        value.name = names[value.name]
    return body


class OnnxRunner:
    """An ONNX file run by onnxruntime on the CPU, its inputs and outputs by their order."""

    def __init__(self, path: Path) -> None:
        # Version 1.29 and later send usage figures home unless told not to, before the import.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [value.name for value in self.session.get_inputs()]

    def __call__(self, *inputs: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """The outputs of these inputs, in the file's order."""
        given = dict(zip(self.inputs, map(np.ascontiguousarray, inputs), strict=True))
        outputs: list[npt.NDArray[Any]] = self.session.run(None, given)
        return outputs
