"""A rank whose parent has gone ends by itself, also while it waits for the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WAITS = """
import torch
from rnnnas import distributed
distributed.GRACE = distributed._LOOK = 0.1
with distributed.joined(torch.device("cpu")):
    pass
"""


def test_a_rank_that_waits_for_others_ends_when_its_parent_has_gone(tmp_path: Path) -> None:
    ranks = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    parent = str(os.getpid() + 1)  # not the one that starts it
    about = {"RNNNAS_RANKS_FILE": str(tmp_path / "store"), "RNNNAS_RANKS_PARENT": parent}
    done = subprocess.run(
        [sys.executable, "-c", WAITS], env={**os.environ, **ranks, **about},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    assert "has gone" in done.stderr
