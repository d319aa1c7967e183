"""The code that a run is started from: git's word, where there is git."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from seatrial import command
from seatrial.errors import PlatformError
from seatrial.runs.manifest import CodeState, GitState


@dataclass(frozen=True, slots=True)
class Source:
    """Where a run that was started from outside comes from, as it was there."""

    git: GitState | None
    code: CodeState | None


def git_state(cwd: Path, runner: command.CommandRunner = command.run) -> GitState | None:
    """Commit, branch, and the hash of what is not committed; None outside of a repository or without git."""

    def git(*arguments: str) -> str | None:
        try:
            done = runner(["git", "-C", str(cwd), *arguments], timeout_s=20)
        except PlatformError:
            return None
        return done.stdout if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    branch = (git("rev-parse", "--abbrev-ref", "HEAD") or "").strip()
    diff = git("diff", "HEAD", "--binary") or ""
    untracked = git("ls-files", "--others", "--exclude-standard") or ""
    dirty = bool(diff or untracked)
    digest = hashlib.sha256(f"{diff}\0{untracked}".encode()).hexdigest() if dirty else None
    return GitState(commit=commit.strip(), branch=branch or None, dirty=dirty, diff_sha256=digest)
