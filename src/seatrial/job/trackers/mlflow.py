"""MLflow, by its client alone: server, file store or database as `MLFLOW_TRACKING_URI` says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from seatrial.job.trackers import About

_BATCH = 500
_LONGEST = 500
"""MLflow refuses longer values of parameters."""


class Connection:
    """See `trackers.Tracker`."""

    def __init__(self) -> None:
        # Its own default is minutes of silent attempts.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        self._id = ""

    def begin(self, about: About, known: str | None) -> tuple[str, str]:
        """The experiment is `MLFLOW_EXPERIMENT_NAME`, or the run's name."""
        if known is not None:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            experiment_id = self._client.get_run(known).info.experiment_id
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or about.name
            found = self._client.get_experiment_by_name(name)
            experiment_id = found.experiment_id if found is not None else self._client.create_experiment(name)
            tags = {"seatrial.run_id": about.run_id} | {f"seatrial.tag.{tag}": "1" for tag in about.tags}
            self._id = str(
                self._client.create_run(experiment_id, run_name=about.run_id, tags=tags).info.run_id
            )
            from mlflow.entities import Param

            parameters = [
                Param(key, str(value)[:_LONGEST])
                for key, value in about.parameters.items()
                if value is not None
            ]
            for first in range(0, len(parameters), 100):
                self._client.log_batch(self._id, params=parameters[first : first + 100])
        uri = str(self._client.tracking_uri).rstrip("/")
        return self._id, f"{uri}/#/experiments/{experiment_id}/runs/{self._id}" if uri.startswith(
            "http"
        ) else uri

    def log(self, rows: list[tuple[int, float, dict[str, float]]]) -> None:
        """In batches."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, int(at * 1000), step)
            for step, at, values in rows
            for key, value in values.items()
        ]
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._id, metrics=metrics[first : first + _BATCH])

    def finish(self, summary: Mapping[str, float], *, well: bool) -> None:
        """As metrics without a step."""
        for key, value in summary.items():
            self._client.log_metric(self._id, key, value)
        self._client.set_terminated(self._id, "FINISHED" if well else "FAILED")
