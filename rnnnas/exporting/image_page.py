"""The page of an image network: its operations as a list that plain JavaScript runs through.

Legend: B images, C channels, h and w pixels, K classes. The list is taken from torch's own export,
so that every network is covered whose operations are; a batch norm becomes a scale and a shift.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.exporting import page
from rnnnas.exporting.graphs import Scores
from rnnnas.exporting.packing import Dtype, packs, rounded
from rnnnas.exporting.page_weights import Array, Packing
from rnnnas.exporting.source import Source
from rnnnas.exporting.verify import real_images, verify_images

_EXACT = 1e-4  # in a probability: other sums of float32


def write_image_page(path: Path, source: Source, dtype: Dtype) -> dict[str, Any]:
    """Write the page of an image network; returns the figures of its verification.

    Raises:
        ExportError: where the page would not compute what torch computes.
        UsageError: for an operation that the page has no rule for.
    """
    assert source.images is not None
    images = source.images
    net = source.image_network()
    size = real_images(source)[0].shape[1:]
    weights = Packing(dtype)
    steps = operations(net, size, weights)
    net.load_state_dict(rounded(net.state_dict(), dtype))
    pixels = check_pixels(size)
    mean, std = ([255 * v for v in values] for values in (images.mean, images.std))
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    with torch.no_grad():
        inputs = (torch.from_numpy(pixels)[None].float() - shift) / scale
        expected = net.logits(inputs)[0].softmax(-1)
    header = {
        "size": list(size), "classes": list(images.classes), "mean": mean, "std": std,
        "crop": 7 / 8 if images.config.augment.size else 1.0,
        "steps": steps, "tensors": weights.table, "check": expected.tolist(),
        "about": page.about(source, dtype),
    }  # fmt: skip
    body = page.read_file("image.html")
    blob = bytes(weights.blob)
    page.write_html(path, source, dtype, header, blob, body, ("weights.js", "image.js"))
    back, stored = page.read_page(path)
    return verify_images(source, ImageRunner(back, stored), dtype, exact=_EXACT)


def check_pixels(size: tuple[int, ...]) -> Array:
    """Pixels by a formula that the page has, too. (3, h, w) uint8"""
    places = np.arange(int(np.prod(size)))
    pixels: Array = (places * 7919 + (places >> 3) * 31) % 251
    return pixels.astype(np.uint8).reshape(size)


def operations(
    net: torch.nn.Module, size: tuple[int, ...], weights: Packing
) -> list[dict[str, Any]]:
    """The steps of a network in evaluation, and its weights put into `weights`.

    A step: op, and `of`, the numbers of the values it takes: 0 is the normalised image, k the
    result of step k, counted from 1. The last one's result are the scores.
    """
    example = torch.zeros((1, *size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Scores(net), (example,)).run_decompositions({})
    state = {**program.state_dict, **program.constants}
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    number = {node: 0 for node in program.graph.nodes if node.op == "placeholder"}
    steps: list[dict[str, Any]] = []

    def value(node: Any) -> Tensor:
        found: Tensor = state[names[node.name]].detach()
        return found

    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        form = getattr(node.target, "_opname", getattr(node.target, "__name__", ""))
        if form == "_assert_tensor_metadata":
            continue
        if form == "getitem":  # the result among a batch norm's outputs
            number[node] = number[node.args[0]]
            continue
        taken = node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
        if form == "add":
            taken = list(node.args)
        step = _step(form, node, weights, value, lambda n: names[n.name].removeprefix("net."))
        step |= {"of": [number[n] for n in taken]}
        steps.append(step)
        number[node] = len(steps)
    return steps


def _step(form: str, node: Any, weights: Packing, value: Any, name: Any) -> dict[str, Any]:
    """A node of the exported graph in the page's words, without its inputs."""
    rest = list(node.args[1:])

    def at(place: int, otherwise: Any) -> Any:
        return rest[place] if len(rest) > place else otherwise

    if form == "conv2d" and at(1, None) is None:
        weight = value(rest[0])
        weights.put(name(rest[0]), weight.flatten(1), packs("weight", weight))
        return {
            "op": "conv", "weight": name(rest[0]), "kernel": list(weight.shape[2:]),
            "stride": list(at(2, [1, 1])), "padding": list(at(3, [0, 0])),
            "dilation": list(at(4, [1, 1])), "groups": at(5, 1),
        }  # fmt: skip
    if form == "_native_batch_norm_legit_no_training":
        scale, shift, mean, variance = map(value, rest[:4])
        factor = scale / (variance + rest[5]).sqrt()
        own = name(rest[0])
        weights.put(f"{own}.scale", factor, False)
        weights.put(f"{own}.shift", shift - mean * factor, False)
        return {"op": "scale", "scale": f"{own}.scale", "shift": f"{own}.shift"}
    if form == "add":
        return {"op": "add"}
    if form in ("relu", "relu6"):
        return {"op": form}
    if form == "cat" and at(0, 0) == 1:
        return {"op": "cat"}
    if form in ("max_pool2d", "avg_pool2d") and not any(rest[3:]):
        kernel, stride, padding = (list(at(i, [0, 0])) for i in range(3))
        return {"op": form[:3], "kernel": kernel, "stride": stride, "padding": padding}
    if form == "slice" and len(rest) >= 3 and rest[0] in (2, 3) and rest[2] > 1 << 30:
        # Always to the end of the axis.
        return {"op": "from", "axis": rest[0] - 1, "start": rest[1], "step": at(3, 1)}
    if form == "pad" and len(rest[0]) == 4:
        return {"op": "pad", "right": rest[0][1], "below": rest[0][3]}
    if form == "mean" and list(rest[0]) == [2, 3]:
        return {"op": "mean"}
    if form == "linear":
        weight = value(rest[0])
        weights.put(name(rest[0]), weight, packs("weight", weight))
        weights.put(name(rest[1]), value(rest[1]), False)
        return {"op": "linear", "weight": name(rest[0]), "bias": name(rest[1])}
    raise UsageError(
        f"the page has no rule for {form}", "export with --format onnx, pt2 or hf instead"
    )


class ImageRunner:
    """The page's network, by the list and the weights that were written: for checking them."""

    def __init__(self, header: dict[str, Any], blob: bytes) -> None:
        self.header = header
        self.tensors = {e["name"]: torch.tensor(Packing.read(e, blob)) for e in header["tensors"]}

    @torch.no_grad()
    def __call__(self, images: Array) -> list[Array]:
        """images (B, 3, h, w) uint8 → probabilities (B, K)."""
        mean, std = (torch.tensor(self.header[k]).view(3, 1, 1) for k in ("mean", "std"))
        values = [(torch.from_numpy(np.array(images)).float() - mean) / std]
        for step in self.header["steps"]:
            values.append(self._run(step, [values[i] for i in step["of"]]))
        return [values[-1].softmax(-1).numpy()]

    def _run(self, step: dict[str, Any], of: list[Tensor]) -> Tensor:
        op, x, t = step["op"], of[0], self.tensors
        if op == "conv":
            weight = t[step["weight"]]
            each = x.shape[1] // step["groups"]
            return F.conv2d(
                x, weight.reshape(len(weight), each, *step["kernel"]), None, step["stride"],
                step["padding"], step["dilation"], step["groups"],
            )  # fmt: skip
        if op == "scale":
            return x * t[step["scale"]].view(-1, 1, 1) + t[step["shift"]].view(-1, 1, 1)
        if op == "from":
            places = torch.arange(step["start"], x.shape[step["axis"] + 1], step["step"])
            return x.index_select(step["axis"] + 1, places)
        if op == "linear":
            return F.linear(x, t[step["weight"]], t[step["bias"]])
        window = (step.get("kernel", 0), step.get("stride", 0), step.get("padding", 0))
        return {
            "add": lambda: of[0] + of[-1],
            "relu": lambda: x.relu(),
            "relu6": lambda: F.relu6(x),
            "cat": lambda: torch.cat(of, 1),
            "max": lambda: F.max_pool2d(x, *window),
            "avg": lambda: F.avg_pool2d(x, *window, count_include_pad=False),
            "pad": lambda: F.pad(x, (0, step["right"], 0, step["below"])),
            "mean": lambda: x.mean((2, 3)),
        }[op]()
