"""What the jobs of a study cost: weight steps, targets, seconds by the clock and of processors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rnnnas.studies.plan import Job
from rnnnas.studies.record import Record

Results = Mapping[str, dict[str, Any]]


def cost_of(jobs: Sequence[Job], record: Record, results: Results) -> dict[str, Any]:
    """The means over finished jobs: jobs (how many), steps, tokens, seconds and
    processor_seconds, None where it is not known of all of them. The steps of a job with a time
    budget are those that its result tells.
    """
    done = [job for job in jobs if job.name in results]
    steps = [results[job.name].get("steps") if job.timed else job.steps for job in done]
    counted = [value for value in steps if value is not None]
    spent = [record.job(job.name).get("processor_seconds") for job in done]
    known = [value for value in spent if value is not None]
    count = max(1, len(done))
    return {
        "jobs": len(done),
        "steps": round(math.fsum(counted) / count) if len(counted) == len(done) else None,
        "tokens": round(math.fsum(job.tokens for job in done) / count),
        "seconds": math.fsum(results[job.name]["seconds"] for job in done) / count,
        "processor_seconds": math.fsum(known) / count if done and len(known) == len(done) else None,
    }


def cost_text(cost: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """Steps, tokens and processor seconds of a `cost_of`, as columns; by the clock in brackets
    where processors are not known.
    """
    if not cost or not cost["jobs"]:
        return "-", "-", "-"
    own = cost["processor_seconds"]
    seconds = f"({cost['seconds']:.0f})" if own is None else f"{own:.0f}"
    tokens = f"{cost['tokens']:,}" if cost["tokens"] else "-"
    steps = "-" if cost["steps"] is None else f"{cost['steps']:,}"
    return steps, tokens, seconds
