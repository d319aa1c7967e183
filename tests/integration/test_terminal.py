"""On a terminal there is a bar; on a narrow one it is shorter; NO_COLOR is obeyed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Callable

import pytest

from .conftest import Seatrial


def run_on_terminal(seatrial: Seatrial, width: int, *words: str, **env: str) -> tuple[int, str]:
    """Exit code, and everything that the command wrote to a terminal of `width` columns."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(seatrial.cwd)
        argv = seatrial.argv(*words)
        environment = {k: v for k, v in seatrial.environment(**env).items() if k != "COLUMNS"}
        os.execve(argv[0], argv, environment | {"TERM": "xterm"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    out = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # Linux reports the end of a terminal as an error
            break
        if not chunk:
            break
        out += chunk
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out.decode(errors="replace")


@pytest.mark.parametrize(("width", "env"), [(80, {}), (40, {"NO_COLOR": "1"})])
def test_the_bar(seatrial: Seatrial, recipe: Callable[..., str], width: int, env: dict[str, str]) -> None:
    code, out = run_on_terminal(
        seatrial, width, "train", recipe(epochs=1, log_every=1), "--train-only", **env,
        SEATRIAL_FAULT="slow_disk:step=10,seconds=2",
    )  # fmt: skip
    assert code == 0, out
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out)
    lines = re.split(r"[\r\n]+", plain)
    assert any(line.startswith("note: at step 20 the checkpoint before was still being") for line in lines)
    bars = [line for line in lines if "━" in line]
    assert any("loss" in line for line in bars)
    assert max(map(len, bars)) <= width
    assert any("/34" in line for line in bars) == (width == 80)
    if env:
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", out), "no colour was asked for"
