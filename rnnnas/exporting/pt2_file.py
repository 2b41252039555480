"""`.pt2`: the same graphs as ONNX, by torch.export, for torch without rnnnas."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

ABOUT = "rnnnas.json"  # the extra file in the archive that says what the model is


def write_pt2(
    path: Path,
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    *,
    axes: Sequence[int],
    metadata: Mapping[str, object],
) -> None:
    """Write a module.

    Args:
        examples: one tensor an input, with a batch of at least two; no two may share memory.
        axes: of each input, the dimension that is the batch.
    """
    batch = torch.export.Dim("batch")
    args = tuple(example.clone() for example in examples)
    shapes: tuple[Any, ...] = tuple({axis: batch} for axis in axes)
    if len(args) > 1:
        shapes = (shapes[0], shapes[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, args, dynamic_shapes=shapes)
        program = program.run_decompositions({})  # no trace of the source's lines in the file
        about = json.dumps(metadata, ensure_ascii=False)
        # torch tells of a file that it cannot write as it tells of everything: not as an OSError.
        whole = io.BytesIO()
        torch.export.save(program, whole, extra_files={ABOUT: about})
    path.write_bytes(whole.getbuffer())


class Pt2Runner:
    """A `.pt2` file loaded again and run by torch on the CPU."""

    def __init__(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.module = torch.export.load(path).module()

    @torch.no_grad()
    def __call__(self, *inputs: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """The outputs of these inputs, in order."""
        out = self.module(*(torch.from_numpy(np.ascontiguousarray(i)) for i in inputs))
        return [part.numpy() for part in (out if isinstance(out, tuple) else (out,))]
