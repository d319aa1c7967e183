"""What all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Path | str], None]:
    """Compares a text with a file, ``golden("plan.json", text)``; with --update-golden, writes the file."""

    def check(text: str, where: Path | str) -> None:
        path = GOLDEN / where
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no golden file {path}: pytest --update-golden writes it"
        assert text == path.read_text(encoding="utf-8"), (
            f"{path} differs; if that is meant: pytest --update-golden"
        )

    return check
