"""From endless output to a few lines now and then."""

import json
from datetime import timedelta

import pytest

from app.jobs.messages import LogLine, LogStream
from tests.support.clock import Clock
from worker.job_log import MAX_BATCH_BYTES, MAX_LINE_BYTES, MAX_RAW_BYTES, MIN_SPACING_S, JobLog
from worker.readable import Redactor

OUT, ERR, NOTE = LogStream.STDOUT, LogStream.STDERR, LogStream.NOTE


@pytest.fixture
def log(clock: Clock) -> JobLog:
    return JobLog(Redactor(), clock)


def texts(lines: tuple[LogLine, ...]) -> list[str]:
    return [line.text for line in lines]


def test_lines_are_whole_in_order_and_know_their_stream_and_age(log: JobLog, clock: Clock) -> None:
    log.take_in(OUT, b"one\ntw")
    clock.now += 2
    log.take_in(ERR, b"warned\n")
    log.take_in(OUT, b"o\nthr")
    clock.now += 5
    lines = log.hand_out()
    assert [(line.stream, line.text, line.age.total_seconds()) for line in lines] == [
        (OUT, "one", 7), (ERR, "warned", 5), (OUT, "two", 5),
    ]  # fmt: skip
    log.confirm()
    log.end()
    last = log.hand_out(at_once=True)
    assert texts(last) == ["thr"], "at the end an unfinished line is a line"
    assert [line.number for line in (*lines, *last)] == [1, 2, 3, 4]


def test_what_was_not_confirmed_is_handed_out_again_and_older(log: JobLog, clock: Clock) -> None:
    log.take_in(OUT, b"one\n")
    first = log.hand_out()
    log.take_in(OUT, b"two\n")
    clock.now += 60
    again = log.hand_out(at_once=True)
    assert (texts(again), again[0].number) == (["one"], first[0].number)
    assert again[0].age == first[0].age + timedelta(seconds=60)
    log.confirm()
    assert texts(log.hand_out(at_once=True)) == ["two"]


def test_lines_go_out_now_and_then(log: JobLog, clock: Clock) -> None:
    num_batches = 0
    for second in range(60):
        clock.now += 1
        log.take_in(OUT, f"{second}\n".encode())
        num_batches += bool(log.hand_out())
        log.confirm()
    assert num_batches <= 60 / MIN_SPACING_S + 1
    assert num_batches > 10


def test_asking_for_the_traceback_loses_no_line(log: JobLog) -> None:
    log.take_in(ERR, b"one\n")
    handed_out = log.hand_out()
    log.take_in(ERR, b"Traceback (most recent call last):\n  File x\nValueError: y\ntwo\n")
    assert "ValueError: y" in log.last_traceback
    log.confirm()
    left = texts(log.hand_out(at_once=True))
    assert texts(handed_out) == ["one"]
    assert left == ["a traceback of ValueError is left out (3 lines); the operator has it", "two"]


def test_of_a_flood_the_beginning_and_the_end_are_kept_and_the_loss_is_told(log: JobLog) -> None:
    line = b"lorem ipsum dolor " * 11 + b"\n"
    written = 0
    log.take_in(OUT, b"first\n")
    for _ in range(1000):
        log.take_in(OUT, line * 300)
        written += len(line) * 300
        assert log._head_bytes + log._tail_bytes <= 2 * MAX_RAW_BYTES
    log.take_in(OUT, b"last\n")
    lines = log.hand_out()
    assert lines[0].text == "first"
    assert lines[-1].text == "last"
    (note,) = [line for line in lines if line.stream is NOTE]
    kept = sum(len(line.text) + 1 for line in lines if line.stream is not NOTE)
    assert int(note.text.split()[0]) + kept == written + len(b"first\nlast\n"), "every byte is accounted for"
    shown = [text for text in texts(lines[1:-1]) if text != note.text]
    assert set(shown) == {line.decode().rstrip("\n")}, "no line is shown in part: half a secret is not known for one"
    assert len(shown) > 50


def test_of_many_short_lines_both_losses_are_told(log: JobLog) -> None:
    for _ in range(100):
        log.take_in(OUT, b"a\n" * 5000)
    lines = log.hand_out()
    notes = [line.text for line in lines if line.stream is NOTE]
    assert [note.split()[1] for note in notes] == ["bytes", "lines"]
    kept = sum(2 for line in lines if line.stream is not NOTE)
    assert int(notes[0].split()[0]) + 2 * int(notes[1].split()[0]) + kept == 1_000_000


def test_a_line_without_end_is_cut(log: JobLog, clock: Clock) -> None:
    for _ in range(2000):
        log.take_in(OUT, b"x" * 1000)
        clock.now += 1
        assert all(line.stream is NOTE or len(line.text) < MAX_LINE_BYTES for line in log.hand_out())
        log.confirm()
    assert len(log._partial[OUT]) <= MAX_LINE_BYTES + 1
    log.take_in(OUT, b"\nnext\n")
    assert texts(log.hand_out(at_once=True))[-1] == "next"


@pytest.mark.parametrize("content", [b"\x01" * 15_000, b"\xff\xfe\n" * 5000, b"a\n" * 8000, "😀\n".encode() * 3000])
def test_what_escaping_makes_of_it_is_bounded_too(log: JobLog, content: bytes) -> None:
    log.take_in(ERR, content + b"\n")
    lines = log.hand_out()
    assert lines
    assert len(json.dumps([[10**12, line.stream.value, line.text] for line in lines])) <= MAX_BATCH_BYTES


def test_what_comes_after_the_end_is_not_taken_in(log: JobLog) -> None:
    log.take_in(OUT, b"mine\n")
    log.end()
    log.take_in(OUT, b"of a process that was left\n")
    assert texts(log.hand_out(at_once=True)) == ["mine"]


def test_a_secret_that_is_broken_by_a_loss_is_not_shown_in_part(clock: Clock) -> None:
    password, address = b"hunter2secret", b"postgres://must:hunter2secret@host/db\n"
    for shift in range(len(address)):
        log = JobLog(Redactor(frozenset({password.decode()})), clock)
        log.take_in(OUT, b"x" * (MAX_RAW_BYTES - 1 - shift) + b"\n" + address)
        for _ in range(10):
            log.take_in(OUT, address * 500)
        shown = "\n".join(texts(log.hand_out()))
        assert "are not kept" in shown
        assert "hunter" not in shown
        assert "secret" not in shown


def test_a_secret_at_which_a_line_is_cut_is_not_shown_in_part(log: JobLog) -> None:
    """The path before it shrinks to its name: what was far to the right is shown."""
    log.take_in(OUT, b"/d" * 2030 + b" postgres://must:hunter2secret@host/db\n")
    assert texts(log.hand_out()) == ["[path]/d", "the line before was longer"]


def test_a_flood_on_one_stream_takes_nothing_from_the_other(log: JobLog) -> None:
    log.take_in(OUT, b"begun")
    for _ in range(10):
        log.take_in(ERR, b"flood\n" * 2000)
    log.take_in(OUT, b" and ended\nsecond\n")
    lines = log.hand_out()
    assert [line.text for line in lines if line.stream is OUT] == ["begun and ended", "second"]
    assert any("are not kept" in line.text for line in lines), "the control: there was a loss"


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n"])
def test_of_a_progress_bar_the_last_state_is_shown(log: JobLog, clock: Clock, end: bytes) -> None:
    for percent in range(0, 101, 10):
        clock.now += 60
        log.take_in(OUT, b"\r" + b"#" * 600 + f"{percent} %".encode())
        log.hand_out()
        log.confirm()
    log.take_in(OUT, end)
    log.end()
    (shown,) = texts(log.hand_out(at_once=True))
    assert shown.endswith("#100 %")


def test_of_a_progress_bar_in_one_piece_the_last_state_is_shown(log: JobLog) -> None:
    log.take_in(OUT, b"".join(b"#" * 60 + f"{percent} %\r".encode() for percent in range(101)) + b"\n")
    (shown,) = texts(log.hand_out())
    assert shown.endswith("#100 %")
