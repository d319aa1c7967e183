"""The demo's data is real and does not leak."""

from __future__ import annotations

from pathlib import Path

import pytest

from seatrial.errors import PlatformError
from seatrial.job.demo_data import (
    HELD_OUT,
    Docstring,
    choose_classes,
    read_docstrings,
    split_by_module,
    standard_library,
)


@pytest.fixture(scope="module")
def chosen() -> list[Docstring]:
    return choose_classes(read_docstrings(standard_library())[0])


@pytest.mark.parametrize("seed", range(5))
def test_no_module_and_no_text_is_on_both_sides(chosen: list[Docstring], seed: int) -> None:
    train, test = split_by_module(chosen, seed)
    assert not {row.module for row in train} & {row.module for row in test}
    assert not {row.text for row in train} & {row.text for row in test}
    assert {row.package for row in train} == {row.package for row in test}
    assert len(train) + len(test) == len(chosen)
    assert 0.5 * HELD_OUT < len(test) / len(chosen) < 1.6 * HELD_OUT


def test_the_split_is_drawn_by_the_seed(chosen: list[Docstring]) -> None:
    assert split_by_module(chosen, 1) == split_by_module(chosen, 1)
    assert split_by_module(chosen, 1) != split_by_module(chosen, 2)


def test_there_are_about_ten_classes_of_real_text(chosen: list[Docstring]) -> None:
    assert 5 <= len({row.package for row in chosen}) <= 10
    assert len(chosen) > 1000


def tree(root: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def test_docstrings_are_found_at_every_level_and_once(tmp_path: Path) -> None:
    source = (
        '"""What the module is for."""\n'
        'class A:\n    """What the class is for."""\n    async def f(self):\n        """What the method is for."""\n'
        '        def g():\n            """What the inner one does."""\n'
        'def short():\n    """Return it."""\n'
    )
    root = tree(
        tmp_path, pkg__a=source, pkg__b='"""What the module is for."""\n', pkg__test__c=source, single=source
    )
    found, unreadable = read_docstrings(root)
    assert [(d.module, d.name) for d in found] == [
        ("pkg.a", ""),
        ("pkg.a", "A"),
        ("pkg.a", "f"),
        ("pkg.a", "g"),
    ]
    assert unreadable == 0


def test_files_that_can_not_be_read_are_counted(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        pkg__good='"""One two three four."""',
        pkg__bad="def (",
        pkg__latin=b'"""\xe9\xe8\xe0\xff"""',
    )
    found, unreadable = read_docstrings(root)
    assert (len(found), unreadable) == (1, 2)


def test_a_python_without_sources_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="sources") as caught:
        read_docstrings(tmp_path)
    assert str(tmp_path) in caught.value.evidence
    with pytest.raises(PlatformError, match="too few packages"):
        choose_classes([Docstring("p", "p.a", "", "x")])


def test_a_package_of_few_modules_still_has_both_sides() -> None:
    rows = [
        Docstring("p", f"p.{m}", "", f"{m} {i}") for m, n in (("a", 90), ("b", 8), ("c", 2)) for i in range(n)
    ]
    train, test = split_by_module(rows, 0)
    assert {row.module for row in test} == {"p.b", "p.c"}
    assert {row.module for row in train} == {"p.a"}
