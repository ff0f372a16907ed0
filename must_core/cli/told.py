"""How a command's errors reach the person who typed it."""

import io
import sys
from collections.abc import Callable

from rich.console import Console

from must_core.errors import FailedElsewhere, MustError

DONE = 0
SOME_FAILED = 1
STOPPED = 3
"""Asked to stop; a checkpoint was saved."""
USAGE = 64
"""Input that cannot be used, or is not there."""


def told(body: Callable[[], int]) -> int:
    """Run a command; an error that the person can do something about becomes a line on stderr and `USAGE`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: paths need not be UTF-8
    try:
        return body()
    except FailedElsewhere:
        return USAGE  # the process that failed says why
    except MustError as e:
        named = f" ({e.param})" if e.param else ""
        message = f"{e.code}{named}: {e.message}"
    except OSError as e:
        message = f"cannot read or write: {e}"
    plain_console(stderr=True).print(message)
    return USAGE


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints what it is given: names of files and classes may look like markup."""
    return Console(stderr=stderr, soft_wrap=True, markup=False, emoji=False, highlight=False)
