"""The user's checkout of the recipe: is it whole, which version is it, what variables does it take."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from seatrial.command import run
from seatrial.errors import PlatformError, SpecError
from seatrial.provision.nebius import hcl
from seatrial.provision.nebius.hcl import Variable

EXAMPLE = Path("installations/example")
SUPPORTED = ("1.20", "1.22")
_SOURCE = re.compile(r'^\s*source\s*=\s*"(\.{1,2}/[^"]+)"', re.MULTILINE)
_CALL = re.compile(r'^\s*module\s+"([^"]+)"', re.MULTILINE)
_MADE = re.compile(r"^\s*(resource|data|module|output|locals)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Gap:
    """What a checkout lacks."""

    module: str
    at: str
    """File and line that ask for it."""
    stub: bool
    """It is there, and holds nothing."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A recipe that was found.

    Attributes:
        root: the directory that holds ``VERSION`` and ``installations``.
    """

    root: Path

    @classmethod
    def find(cls, path: Path) -> Checkout:
        """The recipe in a directory: the soperator directory itself, or the solutions library around it.

        Raises:
            SpecError: it is none.
        """
        path = path.expanduser()
        for root in (path, path / "soperator"):
            if (root / "VERSION").is_file() and (root / EXAMPLE).is_dir():
                return cls(root.resolve())
        seen = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else None
        raise SpecError(
            f"{path} is no checkout of the Soperator recipe",
            evidence="no such directory" if seen is None else f"no VERSION beside installations/example; it has: {', '.join(seen) or 'nothing'}",
            remedy="git clone https://github.com/nebius/nebius-solutions-library, check out a release of soperator "
            f"({' or '.join(f'{v}.x' for v in SUPPORTED)}), and pass --recipe nebius-solutions-library/soperator",
        )  # fmt: skip

    @property
    def version(self) -> str:
        """What ``VERSION`` says, such as 1.22.3."""
        text = (self.root / "VERSION").read_text(encoding="utf-8").strip()
        found = re.search(r"\d+\.\d+\.\d+", text)
        if found is None:
            raise SpecError(f"{self.root}/VERSION names no version", evidence=text[:80])
        return found[0]

    @property
    def series(self) -> str:
        """Its series, such as 1.22.

        Raises:
            SpecError: one that there is no adapter for.
        """
        series = self.version.rpartition(".")[0]
        if series not in SUPPORTED:
            raise SpecError(
                f"the recipe is of version {self.version}, which Seatrial does not know",
                evidence=f"{self.root}/VERSION; supported: {', '.join(f'{v}.x' for v in SUPPORTED)}",
                remedy="check out a release that is supported; variables change between them, and a guess would cost an hour of cluster",
            )
        return series

    @property
    def example(self) -> Path:
        """The installation that comes with it."""
        return self.root / EXAMPLE

    def commit(self) -> str | None:
        """The commit that is checked out, with + where files differ from it; None outside git."""
        try:
            head = run(["git", "-C", str(self.root), "rev-parse", "HEAD"], timeout_s=20)
            changed = run(["git", "-C", str(self.root), "status", "--porcelain", "--", "."], timeout_s=60)
        except PlatformError:
            return None
        return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None

    def gaps(self) -> list[Gap]:
        """Modules that are asked for and are missing or hold nothing, found by following ``source = "./…"``."""
        found: dict[Path, Gap] = {}
        seen: set[Path] = set()
        todo = [self.example]
        while todo:
            directory = todo.pop()
            if directory in seen:
                continue
            seen.add(directory)
            for file in sorted(directory.glob("*.tf")):
                text = file.read_text(encoding="utf-8", errors="replace")
                for match in _SOURCE.finditer(text):
                    calls = _CALL.findall(text[: match.start()])
                    if not calls:
                        continue
                    target = Path(os.path.normpath(directory / match[1]))
                    files = sorted(target.glob("*.tf"))
                    stub = bool(files) and not any(
                        _MADE.search(f.read_text(encoding="utf-8", errors="replace")) for f in files
                    )
                    if not files or stub:
                        line = text.count("\n", 0, match.start()) + 1
                        found[target] = Gap(calls[-1], f"{file.relative_to(self.root)}:{line}", stub)
                    else:
                        todo.append(target)
        return list(found.values())

    def files(self) -> list[Path]:
        """All directories that the example needs, itself included: what has to be copied to have the recipe."""
        found = {self.root / "VERSION"}
        todo, seen = [self.example], set()
        while todo:
            directory = todo.pop()
            if directory in seen or not directory.is_dir():
                continue
            seen.add(directory)
            found |= {p for p in directory.rglob("*") if p.is_file() and ".terraform" not in p.parts}
            for file in directory.glob("*.tf"):
                for source in _SOURCE.findall(file.read_text(encoding="utf-8", errors="replace")):
                    todo.append(Path(os.path.normpath(directory / source)))
        return sorted(p for p in found if not p.name.endswith((".tfstate", ".tfvars", ".envrc")))

    def variables(self) -> dict[str, Variable]:
        """The example's variables, by name.

        Raises:
            SpecError: there are none.
        """
        texts = [f.read_text(encoding="utf-8") for f in sorted(self.example.glob("*.tf"))]
        found = {v.name: v for text in texts for v in hcl.variables(text)}
        if not found:
            raise SpecError("the recipe declares no variables", evidence=str(self.example))
        return found

    @property
    def terraform_minimum(self) -> tuple[tuple[int, int], str]:
        """The Terraform that this recipe really needs, and why: ``((1, 9), "…")``."""
        text = "\n".join(p.read_text(encoding="utf-8", errors="replace") for p in self.example.glob("*.tf"))
        said = [tuple(map(int, m)) for m in re.findall(r'required_version\s*=\s*">=?\s*(\d+)\.(\d+)', text)]
        need: tuple[int, int] = max(((a, b) for a, b in said), default=(1, 0))
        why = f"the recipe says >= {need[0]}.{need[1]}"
        if need < (1, 8) and "provider::" in text:
            need, why = (1, 8), f"{why}, but it calls functions of providers, which came with 1.8"
        if need < (1, 9) and _crosses(text):
            need, why = (1, 9), f"{why}, but its validations look at other variables, which came with 1.9"
        return need, why


def _crosses(text: str) -> bool:
    """Whether a variable's validation looks at something else than this variable."""
    for block in re.split(r'^variable\s+"', text, flags=re.MULTILINE)[1:]:
        name, _, body = block.partition('"')
        body = re.split(r"^}", body, maxsplit=1, flags=re.MULTILINE)[0]
        for validation in body.split("validation {")[1:]:
            others = set(re.findall(r"\bvar\.(\w+)", validation)) - {name}
            if others or "module." in validation or "local." in validation:
                return True
    return False
