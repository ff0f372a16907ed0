"""What users may read of a trainer's output."""

import json
import subprocess
import sys
import traceback

import pytest

from worker.readable import MAX_LINE_CHARACTERS, Reader, Redactor

REDACTOR = Redactor.of_environment(
    {
        "HF_TOKEN": "hf_abcdefghij",
        "MUST_DATABASE_URL": "postgresql://must:p%40ssw0rd@db/must",
        "PATH": "/usr/bin",
        "SHORT_TOKEN": "yes",
    }
)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("plain words, 50 % done and/or more: 3/4", "plain words, 50 % done and/or more: 3/4"),
        ("loading /home/me/models/clip.bin now", "loading [path]/clip.bin now"),
        ("in /data", "in [path]"),
        ("file=/srv/a/b.txt:12", "file=[path]/b.txt:12"),
        ("error:/srv/a/b.txt", "error:[path]/b.txt"),
        ("cannot open '/home/a b/c d.txt'", "cannot open '[path]/c d.txt'"),
        ("g++ -I/usr/include/torch -o ~/out.so", "g++ -I[path]/torch -o [path]/out.so"),
        (r"at C:\Users\me\x.py and \\host\share\x", "at [path]/x.py and [path]/x"),
        ("see https://example.org/a/b?c=/d", "see https://example.org/a/b?c=[path]"),
        ("file:///etc/passwd and file:/etc/passwd", "[path] and [path]"),
        ("logged in with hf_abcdefghij.", "logged in with ***."),
        ("password is p@ssw0rd or p%40ssw0rd", "password is *** or ***"),
        ("SHORT yes stays", "SHORT yes stays"),
        ("redis://me:secret@host/0", "redis://***@host/0"),
        ("api_key=12345 next", "api_key=*** next"),
        ('{"aws_secret_access_key": "abc/def"}', '{"aws_secret_access_key": ***}'),
        ("password = 'two words' is set", "password = *** is set"),
        ("redis://me:se@cret@host/0", "redis://***@host/0"),
        ("redis://me:se/cr@et@host/0 and x@y.org", "redis://***@host/0 and x@y.org"),
        ("see https://example.org/@user/x", "see https://example.org/@user/x"),
        (r'password="two \"quoted\" words" is set', "password=*** is set"),
        ('password="never closed', "password=***"),
        (r'"{\"token\": \"abc def\"}"', r'"{\"token\": ***}"'),
        ("tokens=512 num_tokens: 77, max_token_len=5", "tokens=512 num_tokens: 77, max_token_len=5"),
        ('{"num_tokens": 77} tokenizer=bpe', '{"num_tokens": 77} tokenizer=bpe'),
        ("tokens=abc123 token=512 tokens=512abc", "tokens=*** token=*** tokens=***"),
        ("[rank0]/home/me/x.py", "[rank0][path]/x.py"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"),
        ("null \x00, bidi \u202e, line \u2028", "null \\x00, bidi \\u202e, line \\u2028"),
        ("lone \ud800 half", "lone ? half"),
        ("  10 % \r  20 % \r  30 %", "  30 %"),
        ("x" * 5000, "x" * MAX_LINE_CHARACTERS + " … (cut)"),
    ],
)
def test_a_line_is_shown_without_what_is_nobodys_business(written: str, shown: str) -> None:
    assert [text for text, _ in Reader(REDACTOR).read(written)] == [shown]


def test_nothing_is_shown_of_nothing() -> None:
    assert list(Reader(REDACTOR).read("   \r\n")) == []


def read(lines: list[str]) -> tuple[list[str], Reader]:
    reader = Reader(REDACTOR)
    shown = [text for line in lines for text, _ in reader.read(line)]
    return shown + [text for text, _ in reader.interrupt()], reader


def a_traceback() -> str:
    def connect(password: str) -> None:
        raise ValueError(f"cannot use {password}\nin two lines")

    try:
        try:
            connect("hunter2")
        except ValueError as e:
            raise RuntimeError("chained") from e
    except RuntimeError:
        return traceback.format_exc()


def test_a_traceback_is_the_operators() -> None:
    trace = a_traceback().splitlines()
    shown, reader = read(["before", *trace, "after"])
    assert shown[0] == "before"
    assert shown[-1] == "after"
    assert "of RuntimeError" in shown[-2]
    assert len(shown) < 6
    for word in ("hunter2", "File", "connect", __file__):
        assert word in "\n".join(trace), "the control: it was there"
        assert word not in "\n".join(shown)
    assert "chained" in reader.last_traceback


@pytest.mark.parametrize(
    "trace",
    [
        [
            "Current thread 0x00007f (most recent call first):",
            '  File "/a/b.py", line 3 in f',
            "",
            "Extension modules: x",
        ],
        [
            "  + Exception Group Traceback (most recent call last):",
            '  |   File "/a/b.py", line 3',
            "  | ExceptionGroup: x",
        ],
        ["Traceback (most recent call last):", '  File "/a/b.py", line 3, in <module>', "    secret()"],
        ['  File "/a/b.py", line 3, in <module>'],
        ["frame #0: c10::Error::Error(std::string) + 0x57 (0x7f in /opt/torch/lib/libc10.so)"],
        ["/opt/lib/x.py:12: UserWarning: old", "  secret()"],
    ],
    ids=["faulthandler", "group", "cut short", "a frame alone", "C++", "warning"],
)
def test_traces_of_other_makes_are_left_out_too(trace: list[str]) -> None:
    shown, _ = read([*trace, "done"])
    assert shown[-1] == "done"
    for word in ("/a/", "/opt/", "b.py", "secret()", "line 3", "c10"):
        assert word not in "\n".join(shown)


def test_a_warning_itself_is_shown() -> None:
    shown, _ = read(["/opt/lib/x.py:12: UserWarning: it is old", "  warnings.warn(f)"])
    assert shown == ["[path]/x.py:12: UserWarning: it is old"]


def test_events_of_our_log_become_sentences() -> None:
    event = {
        "event": "rolled_back", "level": "warning", "to_step": 20, "vetoes": ["a", "b"], "nested": {"x": 1},
        "file": "/home/me/x.png", "job_id": "job_1", "logger": "worker.trainer", "timestamp": "2026-01-01T00:00:00Z",
        "half": "\ud800", "broken": "a\nb",
    }  # fmt: skip
    shown, reader = read([json.dumps(event)])
    assert shown == ["warning: rolled_back to_step=20 vetoes=['a', 'b'] file=[path]/x.png half=? broken=a\\nb"]
    assert reader.last_traceback == ""


def test_an_event_with_a_traceback_loses_it() -> None:
    event = {"event": "trainer_failed", "level": "error", "exception": [{"exc_type": "OSError", "frames": ["secret"]}]}
    shown, reader = read([json.dumps(event)])
    assert shown == ["error: trainer_failed", "its traceback is left out; the operator has it"]
    assert "secret" in reader.last_traceback


@pytest.mark.parametrize("line", ["{", "{}", "[1]", '{"event": 7}', "{" * 3000, '{"a": ' + "9" * 5000 + "}"])
def test_what_only_looks_like_an_event_is_a_line(line: str) -> None:
    (shown,) = Reader(REDACTOR).read(line)
    assert shown[0][:1000] == line[:1000]


WORST = ("-token" * 680, "a-" * 2048, "a." * 2048, "secret-" * 585, "a://" * 1024, "'/" * 2048, "/a" * 2048, "'" * 4096)
CLEANING = """
import re, sys
from worker import readable
if len(sys.argv) > 1:
    readable._TOLD_SECRET = re.compile(sys.argv[1], re.IGNORECASE)
for line in sys.stdin:
    readable.Redactor().clean(line)
"""


def clean_elsewhere(*arguments: str, timeout_s: float) -> None:
    """A thread could not be given up on: while a pattern is searched no other runs."""
    command = [sys.executable, "-c", CLEANING, *arguments]
    subprocess.run(command, input="\n".join(WORST), text=True, check=True, timeout=timeout_s)


def test_no_line_keeps_the_worker_busy() -> None:
    clean_elsewhere(timeout_s=120)


def test_negative_control_of_a_pattern_that_repeats_without_bound() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        clean_elsewhere(r"\b((?:[\w-]*(?:secret|token)[\w-]*)\s*[=:]\s*)[^\s]+", timeout_s=8)


def test_what_follows_a_dump_of_stacks_is_shown() -> None:
    shown, _ = read(["Stack (most recent call last):", '  File "a.py", line 1, in f', "INFO: next message"])
    assert shown[-1] == "INFO: next message"


def test_a_traceback_without_end_is_kept_in_part() -> None:
    shown, reader = read(["Traceback (most recent call last):", *(f"  {n}" for n in range(5000))])
    assert shown[0] == "a traceback is left out (2000 lines); the operator has it"
    assert shown[1:] == [f"  {n}" for n in range(1999, 5000)], "after so many lines it has ended"
    assert reader.last_traceback.endswith("  1998")
    assert reader.last_traceback.count("\n") < 500


def test_a_traceback_within_a_dump_ends_with_its_exception() -> None:
    dump = [
        "Thread 0x1 (most recent call first):",
        "Traceback (most recent call last):",
        "  f()",
        "KeyError: 'private'",
    ]
    shown, _ = read([*dump, "done"])
    assert shown == ["a traceback of KeyError is left out (4 lines); the operator has it", "done"]


def test_every_line_and_every_written_form_of_a_secret_is_known() -> None:
    redactor = Redactor.of_environment(
        {"TLS_PRIVATE_KEY": 'first-line\nsecond-line\nthird "ü" line', "PATH": "/usr/bin"}
    )
    for written in (
        "first-line",
        "second-line",
        'third "ü" line',
        '"third \\"ü\\" line"',
        '"third \\"\\u00fc\\" line"',
    ):
        assert "***" in redactor.clean(written)
        assert "line" not in redactor.clean(f"x {written} x")
