"""What `rnnnas bench growth` prints and writes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnnas.cli.common import echo, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def bench_growth(
    device: torch.device,
    *,
    of: str,
    quick: bool,
    settings: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    say: Callable[[str], None],
) -> None:
    """Measure, print a table or one JSON object, and write the image where `out` says so."""
    import os
    from typing import cast

    from rnnnas.bench.cost_model import Kind
    from rnnnas.bench.growth import growth
    from rnnnas.reporting.growth_chart import growth_chart
    from rnnnas.runs.files import write_where_told

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own lines on standard error
    report = growth(cast(Kind, of), device, settings=settings, quick=quick, say=say)
    if out is not None:
        write_where_told(out, growth_chart(report).encode(), (".svg",))
        say(f"wrote {out}")
    if as_json:
        print_json(report)
        return
    for line in table(report):
        echo(line)


def table(report: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    base = report["base"]
    lines = [
        f"a step of {report['of']} at H {base['hidden']}, B {base['streams']}, T {base['steps']}, "
        f"N {base['nodes']}, V {base['vocabulary']:,}; {report['threads']} thread(s), "
        f"{'wall clock' if report['clock'] == 'wall' else report['clock']}",
        f"  {report['formula']}",
        f"  product rate {report['machine']['flops_per_second'] / 1e9:.0f} GFLOP/s, memory rate "
        f"{report['machine']['bytes_per_second'] / 1e9:.1f} GB/s",
        "exponents: of all sizes (expected), of the last two sizes (expected)",
    ]
    for what, unit, scale in (("time", "ms", 1e3), ("memory", "MB", 1e-6)):
        lines.append(what)
        for name, row in report["quantities"].items():
            own = row[what]
            error = "" if math.isnan(own["error"]) else f" ± {own['error']:.2f}"
            fitted = f"{own['exponent']:5.2f}{error} ({own['expected']:5.2f})"
            last = f"{own['last']:5.2f} ({own['expected_last']:5.2f})"
            verdict = "FASTER THAN IT MUST" if own["faster_than_it_must"] else "as it must"
            values = row["seconds" if what == "time" else "bytes"]
            ends = f"{values[0] * scale:.1f} to {values[-1] * scale:.1f} {unit}"
            sizes = f"{row['values'][0]:,} to {row['values'][-1]:,}"
            lines.append(f"  {name:11} {sizes:17} {fitted:22} {last:15} {verdict:20} {ends}")
    if python := report.get("python"):
        lines.append(
            f"Python's share of a step: at most {100 * python['share']:.1f} % "
            f"({1e3 * python['outside_seconds']:.2f} of {1e3 * python['seconds']:.1f} ms are "
            f"outside of kernels; the same calls on next to nothing take "
            f"{1e3 * python['smallest_seconds']:.2f} ms)"
        )
    return lines
