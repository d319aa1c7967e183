"""TensorBoard: event files in ``RUN/tensorboard``, written without torch or TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from seatrial.job.trackers import About


class Connection:
    """See `trackers.Tracker`."""

    def __init__(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event: Any = Event
        self._summary: Any = Summary
        self._open: Any = EventFileWriter
        self._writer: Any = None

    def begin(self, about: About, known: str | None) -> tuple[str, str]:
        """Each attempt writes a file of its own there; TensorBoard reads them as one."""
        directory = about.directory / "tensorboard"
        self._writer = self._open(str(directory))
        return about.run_id, str(directory)

    def log(self, rows: list[tuple[int, float, dict[str, float]]]) -> None:
        """One event a row."""
        for step, at, values in rows:
            scalars = [self._summary.Value(tag=key, simple_value=value) for key, value in values.items()]
            self._writer.add_event(self._event(step=step, wall_time=at, summary=self._summary(value=scalars)))
        self._writer.flush()

    def finish(self, summary: Mapping[str, float], *, well: bool) -> None:
        """As an event at the last step."""
        self.log([(0, time.time(), dict(summary))] if summary else [])
        self._writer.close()
