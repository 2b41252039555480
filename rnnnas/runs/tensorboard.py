"""TensorBoard: what a run shows there, and the server that shows run folders."""

from __future__ import annotations

import math
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import urlsplit

from rnnnas.errors import UsageError, visible
from rnnnas.processes import scratch_folder
from rnnnas.runs.files import disk_errors

if TYPE_CHECKING:
    import numpy as np

_PATTERN = "events.out.tfevents.*"
_FLUSH_SECONDS = 5
_PORTS = 100
# TensorBoard sorts groups of charts by name: what a run is judged by comes first.
_MEASURES = ("perplexity", "accuracy", "loss")
_PROGRESS = ("lr", "gradient_norm", "tokens_per_second", "images_per_second")
_VIEWS = "views"  # images and texts come last
_NO_CURVE = {"epoch", "seconds", "averaged", "number", "steps"}
_NO_CURVES = {"alphas", "rung", "arithmetic"}
_FIRST = ("method", "seed", "cell")


@contextmanager
def _tensorboard_import() -> Iterator[None]:
    """Silences the deprecations that tensorboard's own imports set off; they concern it alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        yield


def curve_name(kind: str, name: str) -> str | None:
    """The tag of the curve of value `name` in lines of `kind`, as `Run.log` gets them.

    'perplexity/valid', 'progress/lr', 'search/alpha_entropy'; None for what makes no curve that
    anybody looks at.
    """
    if kind in _NO_CURVES or name in _NO_CURVE:
        return None
    if name in _PROGRESS:
        return f"progress/{name}"
    if kind == "curve":  # of each cell of a halving: many charts, below what sums them up
        return f"trials/{name}"
    for measure in _MEASURES:
        if name == measure or name.endswith(f"_{measure}"):
            whose = name.removesuffix(measure).rstrip("_")
            if kind in ("search", "train"):
                whose = "train_running" + (f"_{whose}" if whose else "")
            elif kind != "epoch":
                whose = f"{kind}_{whose}".rstrip("_")
            return f"{measure}/{whose or 'train'}"
    return f"search/{name}" if kind == "epoch" else f"{kind}/{name}"


@final
class Board:
    """The events of one process in `folder`, which TensorBoard shows as one run.

    `purge_step` is given where a run goes on from a state: of files that are there already,
    TensorBoard drops all points from that step on.

    Raises, from every method that writes:
        DiskError: where the file cannot be written. The writer works in a thread of its own: the
            call that meets the error may be a later one, `flush` at the latest.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        with _tensorboard_import():
            from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "events.out.tfevents"
        self._failed = False
        self._link: Path | None = None
        self._open = ExitStack()
        _hush_writer_threads()
        with disk_errors(self._path):
            self._writer: Any = SummaryWriter(
                self._in_utf8(folder), purge_step=purge_step, max_queue=100,
                flush_secs=_FLUSH_SECONDS,
            )  # fmt: skip

    def _in_utf8(self, folder: Path) -> str:
        """A path that leads to `folder`: tensorboard opens no other names than those in UTF-8."""
        try:
            str(folder).encode()
        except UnicodeEncodeError:
            self._link = self._open.enter_context(scratch_folder()) / "run"
            self._link.symlink_to(folder.absolute(), target_is_directory=True)
            return str(self._link)
        return str(folder)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each curve; keys are tags."""
        with self._errors():
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)

    def image(self, name: str, array: np.ndarray[Any, Any], step: int) -> None:
        """Add an image, (height, width, 3) uint8.

        Raises:
            ValueError: where the array has another shape or type.
        """
        if array.dtype.name != "uint8" or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not uint8 (height, width, 3)")
        with self._errors():
            self._writer.add_image(f"{_VIEWS}/{name}", array, step, dataformats="HWC")
        self.flush()

    def text(self, name: str, text: str, step: int) -> None:
        """Show a text, read as Markdown."""
        with self._errors():
            self._writer.add_text(name, text, step)
        self.flush()

    def chart(self, title: str, tags: Sequence[str]) -> None:
        """Lay the curves `tags` out in one chart, on the tab of custom scalars."""
        exactly = [f"^{re.escape(tag)}$" for tag in tags]
        with self._errors():
            self._writer.add_custom_scalars({"comparison": {title: ["Multiline", exactly]}})
        self.flush()

    def hparams(
        self, config: Mapping[str, str | int | float | bool], metrics: Mapping[str, float]
    ) -> None:
        """Add the run to the table of hyper-parameters: method, seed, cell and results first.

        TensorBoard takes the columns of the whole table from one of the runs, whichever it is, and
        sorts them by name, but those first whose values are said to differ between runs.
        """
        with _tensorboard_import():
            from tensorboard.plugins.hparams import plugin_data_pb2
            from tensorboard.plugins.hparams import summary_v2 as hp

        finite = {name: float(v) for name, v in metrics.items() if math.isfinite(v)}
        ordered = {name: config[name] for name in _FIRST if name in config}
        # Results as columns too: the list of runs beside the charts shows no others.
        ordered |= finite
        ordered |= {n: v for n, v in config.items() if n not in ordered and "sha256" not in n}
        ordered |= {n: v for n, v in config.items() if n not in ordered}
        shown = [hp.Metric(f"result/{name}", display_name=name) for name in metrics]
        first = {*_FIRST, *finite}
        columns = [hp.HParam(name) for name in dict.fromkeys((*_FIRST, *ordered))]
        table = hp.hparams_config_pb(columns, shown)
        held = table.value[0].metadata.plugin_data
        data = plugin_data_pb2.HParamsPluginData.FromString(held.content)
        for info in data.experiment.hparam_infos:
            info.differs = info.name in first
        held.content = data.SerializeToString()
        with self._errors():
            for summary in (table, hp.hparams_pb(ordered)):
                self._writer.file_writer.add_summary(summary)
        self.scalars({f"result/{name}": value for name, value in finite.items()}, 0)
        self.flush()

    def flush(self) -> None:
        """Hand all events to the system, so that they outlive this process."""
        with self._errors():
            self._writer.flush()

    def close(self) -> None:
        """Flush and close; further calls do nothing."""
        try:
            if self._failed:  # the call that met the error has raised it
                with suppress(OSError):
                    self._writer.file_writer.event_writer.close()
            else:
                with self._errors():
                    self._writer.close()
        finally:
            self._open.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with disk_errors(self._path):
            try:
                yield
            except OSError:
                self._failed = True
                raise


def _hush_writer_threads() -> None:
    """Keep what fails in a writer's thread off standard error: `Board` raises it in ours."""
    from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

    before = threading.excepthook
    if getattr(before, "hushes_writers", False):
        return

    def hook(args: Any) -> None:
        if not (
            isinstance(args.thread, _AsyncWriterThread) and isinstance(args.exc_value, OSError)
        ):
            before(args)

    hook.hushes_writers = True  # type: ignore[attr-defined]
    threading.excepthook = hook


def has_events(folder: Path) -> bool:
    """Whether an event file lies in `folder`."""
    return any(folder.glob(_PATTERN))


def empty_events(folder: Path) -> None:
    """Empty the event files in `folder`, for others that take their place.

    They are not removed: a TensorBoard that reads a file which is gone stops following the folder.

    Raises:
        DiskError: where a file cannot be changed.
    """
    for path in folder.glob(_PATTERN):
        with disk_errors(path):
            path.write_bytes(b"")


def serve(folder: Path, port: int = 6006) -> str:
    """Start TensorBoard over `folder` in a thread, on 127.0.0.1 only; returns its address.

    The first free port from `port` on is taken.

    Raises:
        UsageError: where the folder is missing or no port is free.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder",
            "give a run folder, or the folder of all runs, e.g. checkpoints",
        )
    with _tensorboard_import():
        from tensorboard import program

        for candidate in range(port, min(port + _PORTS, 65536)):
            server = program.TensorBoard()
            server.configure(
                argv=[
                    "tensorboard",
                    f"--logdir={folder}",
                    "--host=127.0.0.1",
                    f"--port={candidate}",
                    "--load_fast=false",  # the fast loader is a second process that listens too
                    "--samples_per_plugin=images=100",
                ]
            )
            try:
                return str(server.launch())
            except program.TensorBoardServerException:
                continue
    raise UsageError(
        f"no port from {port} to {min(port + _PORTS, 65536) - 1} is free", "give another --port"
    )


def launch(folder: Path, port: int = 6006) -> None:
    """Serve `folder` and print the address; returns on Ctrl-C.

    Raises:
        UsageError: where the folder is missing or no port is free.
    """
    try:
        url = serve(folder, port)
        taken = "" if urlsplit(url).port == port else f"port {port} is taken; "
        told = f"TensorBoard on {folder}: {url} ({taken}Ctrl-C ends it)"
        print(visible(told), flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print()
