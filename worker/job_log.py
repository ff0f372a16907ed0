"""From a trainer's output, which may be anything and endless, to a few readable lines for the ledger now and then.

Between two hand-outs, the beginning and the end of what was written are kept as bytes and the middle is only counted:
a trainer that writes gigabytes costs no memory, and little time.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from threading import Lock

from app.jobs.messages import LogLine, LogStream
from worker.readable import Reader, Redactor

MIN_SPACING_S = 3.0
"""Between hand-outs while the trainer runs."""
MAX_RAW_BYTES = 8 * 1024
"""Kept of the beginning, and as many of the end, of what is written between two hand-outs."""
MAX_BATCH_BYTES = 24 * 1024
"""Handed out at a time, as the ledger counts them."""
LINE_OVERHEAD = 40
MAX_LINE_BYTES = 4096
"""What is longer is cut."""
LOSS = "are not kept: too much came at once"


@dataclass(frozen=True)
class _Piece:
    at: float
    stream: LogStream
    content: bytes


class JobLog:
    """Takes output in on one thread and hands lines out on another."""

    def __init__(self, redactor: Redactor, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._readers = {stream: Reader(redactor) for stream in LogStream}
        self._partial = dict.fromkeys(LogStream, b"")
        self._head: list[_Piece] = []
        self._tail: deque[_Piece] = deque()
        self._head_bytes = self._tail_bytes = 0
        self._lost_bytes = dict.fromkeys(LogStream, 0)
        self._ended = False
        self._handed_out_at = float("-inf")
        self._number = 0
        self._batch: list[tuple[int, float, LogStream, str]] = []
        self._num_handed_out = 0

    @property
    def last_traceback(self) -> str:
        """The last traceback that was left out, for the operator; empty when there was none."""
        with self._lock:
            self._read()
            return self._readers[LogStream.STDERR].last_traceback or self._readers[LogStream.STDOUT].last_traceback

    def take_in(self, stream: LogStream, chunk: bytes) -> None:
        """Hear a piece of output; what comes after `end` is nobody's any more."""
        with self._lock:
            if self._ended:
                return
            room = MAX_RAW_BYTES - self._head_bytes if not self._tail else 0
            for content, pieces in ((chunk[:room], self._head), (chunk[room:], self._tail)):
                if content:
                    pieces.append(_Piece(self._clock(), stream, content))
            self._head_bytes += len(chunk[:room])
            self._tail_bytes += len(chunk[room:])
            while self._tail_bytes > MAX_RAW_BYTES:
                first = self._tail.popleft()
                excess = min(self._tail_bytes - MAX_RAW_BYTES, len(first.content))
                self._tail_bytes -= excess
                self._lost_bytes[first.stream] += excess
                if excess < len(first.content):
                    self._tail.appendleft(_Piece(first.at, first.stream, first.content[excess:]))

    def end(self) -> None:
        """Nothing more will come: unfinished lines are lines."""
        with self._lock:
            self._ended = True

    def hand_out(self, *, at_once: bool = False) -> tuple[LogLine, ...]:
        """Lines that the ledger has not confirmed yet: the same ones until `confirm`, then new ones, in due time."""
        with self._lock:
            now = self._clock()
            if not self._num_handed_out and (at_once or now - self._handed_out_at >= MIN_SPACING_S):
                self._read()
                self._num_handed_out = len(self._batch)
                self._handed_out_at = now
            return tuple(
                LogLine(number=number, age=timedelta(seconds=max(0.0, now - at)), stream=stream, text=text)
                for number, at, stream, text in self._batch[: self._num_handed_out]
            )

    def confirm(self) -> None:
        """The ledger took what was handed out last, or never will."""
        with self._lock:
            del self._batch[: self._num_handed_out]
            self._num_handed_out = 0

    def _read(self) -> None:
        """Turn the output so far into lines of the next batch."""
        self._skip_broken_lines()
        found = list(self._lines())
        self._head, self._tail = [], deque()
        self._head_bytes = self._tail_bytes = 0
        self._lost_bytes = dict.fromkeys(LogStream, 0)
        for at, stream, text in _bounded(found):
            self._number += 1
            self._batch.append((self._number, at, stream, text))

    def _lines(self) -> Iterator[tuple[float, LogStream, str]]:
        at = self._clock()
        for piece in self._head:
            yield from self._split(piece)
        if broken := [stream for stream, num_lost in self._lost_bytes.items() if num_lost]:
            at = self._tail[0].at if self._tail else at
            for stream in broken:
                # The beginnings of lines are lost with the rest of them: half a secret would not be known for one.
                self._lost_bytes[stream] += len(self._partial[stream])
                self._partial[stream] = b""
                yield from self._interrupt(at, stream)
            yield at, LogStream.NOTE, f"{sum(self._lost_bytes.values())} bytes of output {LOSS}"
        for piece in self._tail:
            yield from self._split(piece)
        if self._ended:
            yield from self._flush(at)

    def _skip_broken_lines(self) -> None:
        """What follows a loss begins within a line: the rest of that line is lost too."""
        broken = {stream for stream, num_lost in self._lost_bytes.items() if num_lost}
        for position, piece in enumerate(self._tail):
            if piece.stream in broken:
                lost, newline, rest = piece.content.partition(b"\n")
                self._lost_bytes[piece.stream] += len(lost + newline)
                self._tail[position] = _Piece(piece.at, piece.stream, rest)
                broken -= {piece.stream} if newline else set()

    def _split(self, piece: _Piece) -> Iterator[tuple[float, LogStream, str]]:
        *lines, partial = (self._partial[piece.stream] + piece.content).split(b"\n")
        partial = _shown_part(partial)
        # Kept one byte too long, so that the line is known to have been cut.
        self._partial[piece.stream] = partial[: MAX_LINE_BYTES + 1]
        for line in lines:
            yield from self._read_line(piece.at, piece.stream, line)

    def _read_line(self, at: float, stream: LogStream, line: bytes) -> Iterator[tuple[float, LogStream, str]]:
        line = _shown_part(line)
        if cut := len(line) > MAX_LINE_BYTES:
            line = _whole_words(line[:MAX_LINE_BYTES])
        for text, ours in self._readers[stream].read(line.decode("utf-8", "replace")):
            yield at, LogStream.NOTE if ours else stream, text
        if cut:
            yield at, LogStream.NOTE, "the line before was longer"

    def _flush(self, at: float) -> Iterator[tuple[float, LogStream, str]]:
        for stream, partial in self._partial.items():
            if partial:
                yield from self._read_line(at, stream, partial)
            self._partial[stream] = b""
            yield from self._interrupt(at, stream)

    def _interrupt(self, at: float, stream: LogStream) -> Iterator[tuple[float, LogStream, str]]:
        for text, _ in self._readers[stream].interrupt():
            yield at, LogStream.NOTE, text


def _shown_part(line: bytes) -> bytes:
    """What a terminal would show of a progress bar: that after the last carriage return, one at the end aside."""
    return line[line.rfind(b"\r", 0, len(line.rstrip(b"\r"))) + 1 :]


def _whole_words(line: bytes) -> bytes:
    """Without the last word, which was cut: half a secret would not be known for one."""
    *words, _ = line.rsplit(maxsplit=1)
    return words[0] if words else line


def _bounded(found: list[tuple[float, LogStream, str]]) -> list[tuple[float, LogStream, str]]:
    """The lines, or the first and the last of them when escaping has made them too many bytes."""

    def size(line: tuple[float, LogStream, str]) -> int:
        return len(json.dumps(line[2])) + LINE_OVERHEAD

    if sum(map(size, found)) <= MAX_BATCH_BYTES:
        return found
    first, last = _fitting(found, size), _fitting(found[::-1], size)[::-1]
    middle = found[len(first) : len(found) - len(last)]
    losses = [line for line in middle if line[1] is LogStream.NOTE and line[2].endswith(LOSS)]
    note = f"{len(middle) - len(losses)} lines of output {LOSS}"
    return [*first, *losses, (last[0][0] if last else found[-1][0], LogStream.NOTE, note), *last]


def _fitting(
    lines: list[tuple[float, LogStream, str]], size: Callable[[tuple[float, LogStream, str]], int]
) -> list[tuple[float, LogStream, str]]:
    left, fitting = MAX_BATCH_BYTES // 2 - 200, []
    for line in lines:
        left -= size(line)
        if left < 0:
            break
        fitting.append(line)
    return fitting
