"""The command line: options → config → one library call → output. Nothing heavy at the top."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from typing import Any

import click

from rnnnas.cli import (
    checkpoints,
    corpora,
    export,
    listing,
    report,
    runs,
    settings,
    show,
    studies,
)
from rnnnas.cli.common import echo
from rnnnas.cli.memory import ANY, is_out_of_memory, reason_of
from rnnnas.errors import Interrupted, RnnnasError
from rnnnas.processes import end_with_parent
from rnnnas.ranks.presence import announce

# torch's OpenMP threads spin between two operations. With more threads than cores (a second run,
# a busy laptop) long spinning stalls everybody: two searches at once took 1.7 to 17 s a step
# with the usual settings instead of 0.46 s with this one (2 cores, smoke preset, 2026-11-22).
os.environ.setdefault("GOMP_SPINCOUNT", "2000")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class _Group(click.Group):
    """Shows expected failures as one or two lines with their exit code, never a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        # The words of the command, for processes that are to run it too.
        given = args[0] if args else kwargs.get("args")
        kwargs["obj"] = list(sys.argv[1:] if given is None else given)
        try:
            # Outside a run's loop, which saves first: end as on an exception, so that what is half
            # made is cleaned up. Not in the main thread: the program that called us handles its
            # signals.
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            end_with_parent()
            announce()
            if os.environ.get("WORLD_SIZE"):
                # Before torch is imported: it would print frames of C++ where no process answers.
                os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
            value = super().main(*args, **kwargs)
            if sys.stdout is not None:  # None: closed before we began
                sys.stdout.flush()
            sys.exit(value if isinstance(value, int) else 0)
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except click.ClickException as error:
            said = io.StringIO()
            error.show(said)
            echo(said.getvalue(), nl=False, err=True)
            sys.exit(2)
        except (click.Abort, KeyboardInterrupt):
            echo("interrupted", err=True)
            sys.exit(130)
        except RnnnasError as error:
            if not error.quiet:
                echo(f"rnnnas: {error.cause}", err=True)
                remedy = error.remedy
                if isinstance(error, Interrupted) and "--fresh" in kwargs["obj"]:
                    remedy = (
                        "without --fresh, and with that folder as --out, the same command "
                        "continues it"
                    )
                if remedy:
                    echo(f"  {remedy}", err=True)
            sys.exit(error.exit_code)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            echo(f"rnnnas: {reason_of(error)}", err=True)
            echo(f"  {ANY}", err=True)
            sys.exit(2)
        except BrokenPipeError:
            _drop_output()
            sys.exit(0)
        except OSError as error:
            # Standard output that cannot be written, or a path that the system will not take.
            if error.filename is None and error.errno not in _FULL:
                raise
            where = error.filename or "standard output"
            _drop_output()
            echo(f"rnnnas: {where} cannot be used: {error.strerror or error}", err=True)
            echo("  make room or name another place, then give the command again", err=True)
            sys.exit(5)

    # A reader that went away is no failure; click itself would end with exit code 1.

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except BrokenPipeError:
            _drop_output()
            raise click.exceptions.Exit(0) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _drop_output()
            raise click.exceptions.Exit(0) from None


def _drop_output() -> None:
    """Nobody takes what is left to write (`rnnnas ... | head`, a full disk): let it go."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rnnnas")
def main() -> None:
    """Search, train and compare recurrent language-model cells.

    \b
    A first run on the text that every Python carries:
      rnnnas search --corpus pydocs --out checkpoints/first
      rnnnas train  --corpus pydocs --genotype checkpoints/first --out checkpoints/first-train
      rnnnas eval   checkpoints/first-train
      rnnnas sample checkpoints/first-train
    """


for _command in (
    runs.demo, runs.search, runs.train, studies.study, checkpoints.evaluate, checkpoints.sample,
    checkpoints.score, listing.runs, show.show, report.report, export.export, corpora.corpus,
    show.presets, settings.settings, show.board, show.bench,
):  # fmt: skip
    main.add_command(_command)
