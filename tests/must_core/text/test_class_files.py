import json
from pathlib import Path

import pytest

from must_core.errors import InvalidClasses
from must_core.text import class_files
from must_core.text.class_files import read_classes, read_templates
from must_core.text.prompts import ClassSpec, check_classes


def written(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def code_of(path: Path, *, templates: bool = False) -> tuple[str, str | None]:
    with pytest.raises(InvalidClasses) as caught:
        read_templates(path) if templates else read_classes(path)
    return caught.value.code, caught.value.param


def test_one_name_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "classes.txt", "\ufeffcat\r\n  large dog\t\r\n\r\n{bird}\rna\u00efve")
    assert read_classes(path) == tuple(map(ClassSpec, ("cat", "large dog", "{bird}", "naïve")))


@pytest.mark.parametrize("name", ["classes.json", "CLASSES.JSON"])
def test_a_json_list_of_names_and_objects(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, json.dumps(["cat", {"name": "dog", "prompts": ["a terrier"]}, {"name": "bird"}]))
    assert read_classes(path) == (ClassSpec("cat"), ClassSpec("dog", ("a terrier",)), ClassSpec("bird"))


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_odd_line_separators_do_not_slip_through_as_line_ends(tmp_path: Path, separator: str) -> None:
    classes = read_classes(written(tmp_path, "classes.txt", f"cat{separator}dog\nbird"))
    assert len(classes) == 2
    with pytest.raises(InvalidClasses) as caught:
        check_classes(classes, ["{}"])
    assert caught.value.code == "invalid_class_name"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("classes.txt", "caf\u00e9\ndog".encode("latin-1"), "invalid_encoding"),
        ("classes.txt", "cat\ndog".encode("utf-16"), "invalid_encoding"),
        ("classes.json", '["caf\u00e9"]'.encode("latin-1"), "invalid_encoding"),
        ("classes.json", '["cat", ', "malformed_json"),
        ("classes.json", "", "malformed_json"),
        ("classes.json", "[" * 100_000, "malformed_json"),
        ("classes.json", "[" + "1" * 5000 + "]", "malformed_json"),
        ("classes.json", '{"cat": 1}', "invalid_type"),
        ("classes.json", '"cat"', "invalid_type"),
        ("classes.json", '["cat", 3]', "invalid_type"),
        ("classes.json", '["cat", null]', "invalid_type"),
        ("classes.json", '["cat", NaN]', "invalid_type"),
        ("classes.json", '["cat", ["dog"]]', "invalid_type"),
        ("classes.json", '["cat", {"name": "dog", "prompts": [1]}]', "invalid_type"),
        ("classes.json", '["cat", {"name": "dog", "prompt": ["a dog"]}]', "unknown_field"),
    ],
)
def test_wrong_class_files_are_told_by_code(tmp_path: Path, name: str, content: bytes | str, code: str) -> None:
    assert code_of(written(tmp_path, name, content)) == (code, "classes")


def test_templates_are_read_in_the_same_ways(tmp_path: Path) -> None:
    assert read_templates(written(tmp_path, "t.txt", "a {}.\nthe {}.\n")) == ("a {}.", "the {}.")
    assert read_templates(written(tmp_path, "t.json", '["a {}.", "the {}."]')) == ("a {}.", "the {}.")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\xff\xfe", "invalid_encoding"),
        ("[", "malformed_json"),
        ('{"a {}": 1}', "invalid_type"),
        ('["a {}", 1]', "invalid_type"),
        ('["a {}", null]', "invalid_type"),
        ('[["a {}"]]', "invalid_type"),
        ('[{"name": "a {}"}]', "invalid_type"),
    ],
)
def test_wrong_template_files_are_told_by_code(tmp_path: Path, content: bytes | str, code: str) -> None:
    assert code_of(written(tmp_path, "t.json", content), templates=True) == (code, "templates")


def test_a_file_that_is_no_list_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_files, "MAX_BYTES", 10)
    assert code_of(written(tmp_path, "classes.txt", "x" * 11)) == ("too_many_classes", "classes")
    assert code_of(written(tmp_path, "t.txt", "x" * 11), templates=True) == ("too_many_prompts", "templates")
    assert read_classes(written(tmp_path, "classes.txt", "x" * 10)) == (ClassSpec("x" * 10),)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_classes(tmp_path / "classes.txt")
