"""export: a trained model as a file that needs no rnnnas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rnnnas.cli import complete
from rnnnas.cli.common import echo, json_option, plugin_option, print_json


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), shell_complete=complete.trained)
@click.option("--format", "form", type=click.Choice(["onnx", "html", "hf", "pt2"]), required=True,
              help="ONNX; a page for browsers; a Hugging Face folder; torch.export.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "float16", "int8"]),
              help="Of large weights.  [default: int8 for html, else float32]")  # fmt: skip
@click.option("--opset", type=int, default=20, show_default=True, help="Of ONNX.")
@click.option("--chunk", type=click.IntRange(1), metavar="T",
              help="Score T tokens a call instead of one (onnx, pt2).")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path),
              help="Where to write.  [default: beside the checkpoint]")  # fmt: skip
@plugin_option
@json_option
def export(
    checkpoint: Path, form: Any, dtype: Any, opset: int, chunk: int | None, out: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write a trained model in a form that needs no rnnnas.

    CHECKPOINT is the best.pt of a training, its run folder, or a folder made for the hub. What is
    written is compared with torch on real text or images; above tolerance nothing is left and the
    exit code is 1.

    \b
    Examples:
      rnnnas export checkpoints/qt/best.pt --format html
      rnnnas export checkpoints/qt --format onnx --dtype int8
      rnnnas export checkpoints/qt --format hf --out my-model
    """
    from rnnnas.exporting.run import export as run

    result = run(checkpoint, format=form, dtype=dtype, opset=opset, chunk=chunk, out=out)
    if as_json:
        print_json(result.to_plain())
        return
    echo(f"wrote {result.path} ({result.bytes:,} bytes, {result.dtype})")
    for line in result.lines():
        echo(line)
    echo(f"next: {result.hint()}")
