"""TensorBoard event files, written with tensorboardX's record writer and messages.

Not with its SummaryWriter: that one writes from a thread of its own, which a full disk ends
silently so that the run then waits for it forever, and puts the host's name into the file's name.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboardX.record_writer import RecordWriter

from lift.tracking.base import About

_EVENTS: Final = "events.out.tfevents"


class TensorboardTracker:
    """One federation's event file; older ones in the folder are removed.

    A resumed run tells its rounds again, so the folder ends as that of an uninterrupted one.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, about: About) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{_EVENTS}.*"):
            old.unlink()
        # an absolute path: the writer would take a scheme for the address of a cloud store
        self._writer = RecordWriter(str(folder.absolute() / f"{_EVENTS}.{time.time():.0f}.lift"))
        self._write(Event(file_version="brain.Event:2"))
        texts = [_text(f"about/{key}", text) for key, text in about.texts.items()]
        self._write(Event(step=0, summary=Summary(value=texts)))
        self._writer.flush()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Append one event, on the disk when this returns."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._write(Event(step=step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self, *, complete: bool) -> None:
        """Close the file."""
        del complete
        # whatever it holds was flushed; after a full disk it can only fail once more
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())


def _text(tag: str, text: str) -> Summary.Value:
    return Summary.Value(
        tag=tag,
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
        tensor=TensorProto(
            dtype="DT_STRING",
            string_val=[text.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        ),
    )
