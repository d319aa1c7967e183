"""What a run must show before it counts as passed: sections of its recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from seatrial.spec.section import Section


class CompareGate(Section):
    """What the comparison must show."""

    metric: str | None = None
    """accuracy, macro_f1, log_loss or calibration_error; nll or perplexity for causal-lm."""
    require: Literal["better", "not worse"] | None = None
    """The verdict without which the run fails (exit code 1)."""
    min_improvement: Annotated[float, Field(ge=0)] = 0.0
    """Smallest improvement, in the metric's own unit (0.02 is two points of accuracy)."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the intervals and of the verdict."""


class UtilisationGate(Section):
    """How much the GPUs must be used."""

    min: Annotated[float, Field(gt=0, le=100)] | None = None
    """Percent of use, mean over all GPUs of the allocation, without which the run fails (exit code 1)."""
    floor: Annotated[float, Field(ge=0, le=100)] | None = None
    """Percent that each single GPU must reach [default: 50, or min where that is less]."""
    window: Literal["steady", "all"] = "steady"
    """steady is training, without start-up, evaluation and predicting; all is from the first second to the last."""
    over: Literal["all-gpus"] = "all-gpus"
    """All GPUs that were allocated, also those without a process."""
    metric: Literal["auto", "sm_active", "gpu_busy", "cpu_busy"] = "auto"
    """What use is: sm_active (activity of the multiprocessors), gpu_busy (any kernel ran: weaker), cpu_busy; auto is the best that the hardware tells. Another one than that is UNMEASURED."""
    on_fail: Literal["warn", "stop"] = "warn"
    """While the run goes on: say so, or save and stop once the last patience_minutes of training were under min."""
    patience_minutes: Annotated[float, Field(gt=0)] = 10
    """How long use may be under min before on_fail: stop stops the run."""
    stop_idle_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop the run once no GPU has done anything for so many minutes."""

    @model_validator(mode="after")
    def _stops_at_something(self) -> UtilisationGate:
        if self.on_fail == "stop" and self.min is None:
            raise ValueError("on_fail: stop needs min: the use below which to stop")
        return self


class ScriptGates(Section):
    """What must be shown before the run of a script counts as passed."""

    utilisation: UtilisationGate = UtilisationGate()


class GatesSpec(ScriptGates):
    """What must be shown before the run counts as passed."""

    compare: CompareGate = CompareGate()
