"""Imported first, this makes the process's wall clock wrong by ``TEST_CLOCK_SHIFT_S`` seconds. Monotonic time stays."""

import datetime
import os
import time

SHIFT_S = float(os.environ.get("TEST_CLOCK_SHIFT_S", "0"))

if SHIFT_S:
    _right, _right_ns, _Right = time.time, time.time_ns, datetime.datetime

    class WrongDatetime(_Right):
        """The class that everybody imports from now on."""

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return _Right.now(tz) + datetime.timedelta(seconds=SHIFT_S)

    time.time = lambda: _right() + SHIFT_S
    time.time_ns = lambda: _right_ns() + int(SHIFT_S * 1e9)
    datetime.datetime = WrongDatetime  # type: ignore[misc]
