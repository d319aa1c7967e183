"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.fixtures import slurm, slurm_cluster, slurm_ns, slurm_plain, slurm_plain_cluster
from tests.ssh.fixtures import login

__all__ = ["login", "slurm", "slurm_cluster", "slurm_ns", "slurm_plain", "slurm_plain_cluster"]

GOLDEN = Path(__file__).parent / "golden"


# These measure time, or make others slow on purpose: no second test runs beside them.
_ALONE = {
    "test_check.py", "test_check_launch.py", "test_check_links.py", "test_check_pairs.py", "test_check_probes.py", "test_check_speed.py",
    "test_check_work.py", "test_guards.py", "test_memory.py", "test_watch.py", "test_watched_ranks.py",
}  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.parent.name in {"integration", "slurm"} and item.path.name in _ALONE:
        item.add_marker(pytest.mark.alone)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session", autouse=True)
def _token_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test leaves tokenised data in the user's cache, or finds any there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "SEATRIAL_CACHE", str(tmp_path_factory.mktemp("tokens")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_site_defaults() -> Iterator[None]:
    """What whoever runs the tests has in a config.yaml of their own stays out of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "SEATRIAL_CONFIG", os.devnull)
        yield


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
