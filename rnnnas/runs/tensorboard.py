"""TensorBoard: the event file of a run, and the server that shows run folders.

Events are written here, not through `SummaryWriter`: it writes from a thread of its own, which
hides a full disk until much later, and it cannot say how far the file has come. With the exact
offset a resumed run cuts its curves back to the state it resumes from.
"""

from __future__ import annotations

import io
import math
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import urlsplit

from rnnnas.errors import UsageError
from rnnnas.runs.files import disk_errors

if TYPE_CHECKING:
    import numpy as np

_PATTERN = "events.out.tfevents.*"
_FLUSH_SECONDS = 5.0
_PORTS = 100


@contextmanager
def _tensorboard_import() -> Iterator[None]:
    """Silences the deprecations that tensorboard's own imports set off; they concern it alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        yield


@final
class Board:
    """One event file in `folder`, named to sort after those that are there.

    `purge_step` tells a TensorBoard that is open on an earlier process of this run to drop what
    it holds from that step on.

    Raises, from every method that writes:
        DiskError: where the file cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        with _tensorboard_import():
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        self._event = event_pb2
        self._summary = summary_pb2
        taken = [int(path.name.split(".")[3]) for path in event_files(folder)]
        number = max([time.time_ns(), *(last + 1 for last in taken)])
        self.path = folder / f"events.out.tfevents.{number}.rnnnas"
        with disk_errors(self.path):
            self._file = self.path.open("xb")
        self._records = RecordWriter(self._file)
        self._flushed = time.monotonic()
        # Purging is done for files of version 2 only.
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(session_log=start, step=purge_step))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each curve; keys are tags."""
        self._add([self._scalar(tag, value) for tag, value in values.items()], step)

    def image(self, tag: str, array: np.ndarray[Any, Any], step: int) -> None:
        """Add an image, (height, width, channels) uint8 with 1, 3 or 4 channels.

        Raises:
            ValueError: where the array has another shape or type.
        """
        from PIL import Image

        if array.dtype.name != "uint8" or array.ndim != 3 or array.shape[2] not in (1, 3, 4):
            raise ValueError(f"{tag} is {array.dtype} {array.shape}, not uint8 (height, width, 3)")
        height, width, channels = array.shape
        encoded = io.BytesIO()
        Image.fromarray(array[:, :, 0] if channels == 1 else array).save(encoded, format="PNG")
        image = self._summary.Summary.Image(
            height=height,
            width=width,
            colorspace=channels,
            encoded_image_string=encoded.getvalue(),
        )
        self._add([self._summary.Summary.Value(tag=tag, image=image)], step)
        self.flush()

    def text(self, tag: str, text: str, step: int) -> None:
        """Show a text, read as Markdown."""
        self._tensor(tag, "text", text.encode(), step)

    def chart(self, title: str, tags: Sequence[str]) -> None:
        """Lay the curves `tags` out in one chart, on the tab of custom scalars."""
        with _tensorboard_import():
            from tensorboard.plugins.custom_scalar import layout_pb2, metadata

        exactly = [f"^{re.escape(tag)}$" for tag in tags]
        lines = layout_pb2.MultilineChartContent(tag=exactly)
        chart = layout_pb2.Chart(title=title, multiline=lines)
        layout = layout_pb2.Layout(
            category=[layout_pb2.Category(title="comparison", chart=[chart])]
        )
        data = layout.SerializeToString()
        self._tensor(metadata.CONFIG_SUMMARY_TAG, metadata.PLUGIN_NAME, data, 0)

    def _tensor(self, tag: str, plugin: str, data: bytes, step: int) -> None:
        """Write bytes that a plugin of TensorBoard understands."""
        with _tensorboard_import():
            from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

        owner = self._summary.SummaryMetadata.PluginData(plugin_name=plugin)
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            tensor_shape=tensor_shape_pb2.TensorShapeProto(),
            string_val=[data],
        )
        value = self._summary.Summary.Value(
            tag=tag, metadata=self._summary.SummaryMetadata(plugin_data=owner), tensor=tensor
        )
        self._add([value], step)
        self.flush()

    def hparams(
        self, config: Mapping[str, str | int | float | bool], metrics: Mapping[str, float]
    ) -> None:
        """Add the run to the table of hyper-parameters, in this same event file."""
        with _tensorboard_import():
            from tensorboard.plugins.hparams import summary_v2 as hp

        tags = {f"hparam/{name}": float(value) for name, value in metrics.items()}
        columns = [hp.HParam(name) for name in config]
        shown = [hp.Metric(tag, display_name=tag.partition("/")[2]) for tag in tags]
        for summary in (hp.hparams_config_pb(columns, shown), hp.hparams_pb(dict(config))):
            self._write(self._event.Event(summary=summary))
        self.scalars({tag: value for tag, value in tags.items() if math.isfinite(value)}, 0)
        self.flush()

    def _scalar(self, tag: str, value: float) -> Any:
        return self._summary.Summary.Value(tag=tag, simple_value=value)

    def _add(self, values: list[Any], step: int) -> None:
        if values:
            self._write(self._event.Event(summary=self._summary.Summary(value=values), step=step))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with disk_errors(self.path):
            self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Hand all events to the system, so that they outlive this process."""
        with disk_errors(self.path):
            self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close; further calls do nothing."""
        with disk_errors(self.path):
            self._file.close()


def event_files(folder: Path) -> list[Path]:
    """The event files in `folder` that a Board wrote, oldest first."""
    return sorted(path for path in folder.glob(_PATTERN) if path.name.split(".")[3:][0].isdecimal())


def event_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each event file, by name: the argument of `cut_events`."""
    return {path.name: path.stat().st_size for path in event_files(folder)}


def cut_events(folder: Path, sizes: Mapping[str, int]) -> None:
    """Cut the event files back to `sizes`, and empty those that have none.

    They are emptied, not removed: a TensorBoard that reads a file which is gone stops following
    the folder.

    Raises:
        DiskError: where a file cannot be changed.
    """
    for path in event_files(folder):
        with disk_errors(path):
            size = sizes.get(path.name, 0)
            if path.stat().st_size > size:
                os.truncate(path, size)


def serve(folder: Path, port: int = 6006) -> str:
    """Start TensorBoard over `folder` in a thread, on 127.0.0.1 only; returns its address.

    The first free port from `port` on is taken.

    Raises:
        UsageError: where the folder is missing or no port is free.
    """
    if not os.path.isdir(folder):
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
        print(f"TensorBoard on {folder}: {url} ({taken}Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print()
