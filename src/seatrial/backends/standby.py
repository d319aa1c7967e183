"""An agent of this machine that is started before its run exists, so that it imports while others look."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from seatrial import command
from seatrial.errors import PlatformError
from seatrial.runs.plan import LaunchPlan


class Standby:
    """Ends by itself when this process ends before `take`.

    Args:
        plan: of the attempt that is to come; its directory need not exist.
        model: hub id or directory of the model whose code is imported ahead.
        task: the run's.
    """

    def __init__(self, plan: LaunchPlan, model: str, task: str) -> None:
        self._preload = [model, task]
        self._directory = tempfile.TemporaryDirectory(prefix="seatrial-")
        self._log = Path(self._directory.name) / "standby.log"
        self._channel, theirs = command.Channel.pair()
        self._process = command.start(
            [plan.python, "-m", "seatrial.job.standby", str(theirs.fileno()), "training", str(plan.threads), str(self._log)],
            log=self._log, cwd=plan.cwd, new_session=True, channel=theirs,
        )  # fmt: skip

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> command.Completed:
        """As `command.run`, for one of Seatrial's own programs, which finds its imports done.

        Both outputs come as one. `env` and `cwd` are this process's.
        """
        assert env is None and cwd is None
        output = Path(self._directory.name) / "output"
        request = {"do": "run", "argv": list(argv), "stdout": str(output), "preload": self._preload}
        try:
            self._channel.send(request)
            answer = self._channel.receive(timeout_s)
        except EOFError:
            answer = {"returncode": 1}
        if answer is None:
            raise PlatformError(
                f"{argv[0]} did not end within {timeout_s:g} s", evidence=" ".join(argv)[:300]
            )
        if "error" in answer:
            raise PlatformError(**{k: v for k, v in answer["error"].items() if k != "exit_code"})
        source = output if output.exists() else self._log
        text = source.read_text(errors="replace")
        return command.Completed(tuple(argv), int(answer["returncode"]), text, text)

    def take(self, plan: LaunchPlan, argv: Sequence[str], log: Path) -> int:
        """Makes it the agent of `plan`, as if `argv` had been started; returns its pid.

        Raises:
            PlatformError: it has ended.
        """
        message = {
            "do": "take", "run_dir": str(plan.run_dir), "attempt": plan.attempt, "argv": list(argv), "log": str(log),
        }  # fmt: skip
        try:
            self._channel.send(message)
        except EOFError:
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise PlatformError(
                "the agent that was started ahead has ended",
                evidence=last[0] if last else f"process {self._process.pid}, which printed nothing",
            ) from None
        return self._process.pid
