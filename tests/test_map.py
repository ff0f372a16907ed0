"""The README's map is the tree."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def listed() -> dict[str, set[str]]:
    """Files that the map lists below each room."""
    rooms: dict[str, set[str]] = {}
    room = ""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for line in text.partition("## Map of the house")[2].partition("```\n")[2].partition("```")[0].splitlines():
        first = line.split()[0]
        if not line.startswith(" "):
            room = first.rstrip("/")
            rooms[room] = set()
        else:
            rooms[room].add(first)
    return rooms


@pytest.mark.parametrize("room", ["must_core", "app", "worker"])
def test_every_file_has_its_line(room: str) -> None:
    files = {str(p.relative_to(REPOSITORY / room)) for p in (REPOSITORY / room).rglob("*.py")}
    assert listed()[room] == {name for name in files if not name.endswith("__init__.py")}


def test_every_room_is_on_the_map() -> None:
    rooms = {p.name for p in REPOSITORY.iterdir() if p.is_dir() and any(p.glob("**/*.py"))}
    rooms -= {name for name in rooms if name.startswith(".") or name in {"must-data", "demo-output"}}
    assert rooms <= set(listed())
