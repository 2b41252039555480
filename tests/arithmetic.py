"""What `model.precision = "auto"` stands for in tests: never what the processor happens to have.

`RNNNAS_TEST_PRECISION=bfloat16` runs the tests as on a processor that multiplies bfloat16, anything
else as on one that does not. A processor without such products imitates them, with other sums.
"""

from __future__ import annotations

import os

import torch

VARIABLE = "RNNNAS_TEST_PRECISION"
PRECISIONS = ("float32", "bfloat16")


def precision() -> str:
    """The precision that this run of the tests is to have: "float32" or "bfloat16".

    Raises:
        ValueError: where the variable names another one.
    """
    asked = os.environ.get(VARIABLE) or "float32"
    if asked not in PRECISIONS:
        raise ValueError(f"{VARIABLE} = {asked!r} is neither of {', '.join(PRECISIONS)}")
    return asked


def pin() -> None:
    """Make torch report the processor of `precision`, in this process, until it ends.

    Processes that a test starts by `multiprocessing` call it for themselves. Commands in processes
    of their own see the real processor: a test that compares their figures with others' says
    `model.precision`.
    """
    able = precision() == "bfloat16"
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        setattr(torch.cpu, name, lambda able=able: able)
