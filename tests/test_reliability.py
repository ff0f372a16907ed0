"""Every test that docs/reliability.md names is there, and every promise has its row."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


@cache
def functions(path: str) -> set[str]:
    """Names of the functions on top of a file."""
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_that_is_named_exists(path: str, name: str) -> None:
    assert name in functions(path)


def test_each_promise_has_one_row_and_each_row_a_test_or_a_reason() -> None:
    shown, _, _ = PAGE.partition("\n## Figures\n")
    rows = [line.strip("|").split(" | ") for line in shown.splitlines() if re.match(r"\| [A-Z]", line)]
    rows = [[cell.strip() for cell in row] for row in rows if row[-1].strip() != "Control"]
    assert [row[0] for row in rows if re.fullmatch(r"P\d+", row[0])] == [f"P{n}" for n in range(1, 24)]
    for row in rows:
        assert "::" in row[-2] or row[-2].startswith("not "), row[0]
        assert row[-1], row[0]
    assert len(NAMED) > 60
