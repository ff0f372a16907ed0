"""What users may read of a trainer's output: lines without traces, paths of the machine, secrets or control characters.

The operator has all of it, as written, in the trainer's log file. See docs/decisions/012-job-logs.md.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

from app.log import escape_controls

MAX_LINE_CHARACTERS = 1000
MAX_TRACEBACK_CHARACTERS = 16_000
MAX_TRACEBACK_LINES = 400
"""Of what is left out, as many are kept for the operator, the last ones."""
MAX_TRACEBACK_LINES_LEFT_OUT = 2000
"""Then it is taken to have ended."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SECRET_NAME = re.compile(r"secret|token|passw|credential|api_?key|access_?key|private_?key|_url$|_dsn$", re.IGNORECASE)
_MIN_SECRET = 6
# Whatever repeats is bounded, and a pattern begins with what is rare: a trainer may write any line, and while one is
# searched no other thread of the worker beats.
_COUNTED = (
    r"(?:s[\w-]{0,30}|[_-](?:count|len|length|dim|ids?))[\"']{0,2}\s{0,9}[=:]\s{0,9}[\d.,]{1,12}[kmg]?(?![^\s,;)\]}])"
)
"""What follows ``token`` where tokens are counted: ``tokens=512`` is for users to read."""
_TOLD_SECRET = re.compile(
    rf"((?:secret|token(?!iz|{_COUNTED})|passw(?:or)?d|api[_-]?key|access[_-]?key)[\w-]{{0,40}}"
    r"\\{0,3}[\"']{0,2}\s{0,9}[=:]\s{0,9}|\b(?:bearer|basic)\s{1,9})"
    r"(?:\\{1,3}\"[^\"]*\"?|\\{1,3}'[^']*'?"
    r"|\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?|[^\s\"',;&]+)",
    re.IGNORECASE,
)
_WORD = re.compile(r"\S+")
_FILE_URL = re.compile(r"\bfile:/+\S*", re.IGNORECASE)
_QUOTED_PATH = re.compile(r"""(?P<quote>['"])(?P<path>(?:~|[A-Za-z]:)?[/\\][^'"]*)(?P=quote)""")
_PATH = re.compile(
    r"(?:(?<=\s-[IL])|(?<![\w./~-])(?<!\[path\]))(?:~|[A-Za-z]:(?=\\))?(?:[/\\][\w.@+=,%~-]+)+[/\\]?|\\\\[\w.-]+(?:\\[\w.@+-]+)+"
)

_TRACE_BEGINS = re.compile(
    r"^[\s|+-]*(?:Exception Group )?(?:Traceback \(most recent call (?:last|first)\)|Stack \(most recent call)"
    r"|^(?:Current thread|Thread) 0x|^Extension modules: "
)
_TRACE_WITH_KIND = re.compile(r"Traceback \(most recent call")
"""Ends with a line that names the exception; a dump of stacks just ends."""
_TRACE_GOES_ON = re.compile(
    r"^\s|^[|+]|^$|^(?:During handling of|The above exception was)|^(?:Current thread|Thread) 0x"
)
_TRACE_ENDS = re.compile(r"^(?P<kind>(?:\w+\.)*[A-Z]\w*|\w+(?:\.\w+)+)(?::.*)?$")
_FRAME = re.compile(
    r"^(?:During handling of|The above exception was)"
    r'|^[\s|]*File ".*", line \d+'
    r"|^\s*frame #\d+: |^\s*#\d+\s+0x"
)
_WARNING = re.compile(r"^\S+:\d+: \w*Warning: ")
_PLAIN = (str, int, float, bool)
_HIDDEN = frozenset({"event", "level", "logger", "timestamp", "exception", "stack", "job_id", "attempt"})


class Redactor:
    """Takes secrets and paths out of text."""

    def __init__(self, secrets: frozenset[str] = frozenset()) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        self._secrets = sorted((form for form in forms if len(form) >= _MIN_SECRET), key=len, reverse=True)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> "Redactor":
        """Knows the values of variables whose names tell of secrets, and the passwords in addresses."""
        secrets: set[str] = set()
        for name, value in environment.items():
            if not _SECRET_NAME.search(name):
                continue
            secrets.add(value)
            try:
                password = urlsplit(value).password
            except ValueError:
                continue
            secrets |= {password, unquote(password)} if password else set()
        return cls(frozenset(secrets))

    def clean(self, text: str) -> str:
        """The text on one line, short, and fit to be read by anybody who may see the job."""
        text = _COLOUR.sub("", text)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = _TOLD_SECRET.sub(r"\1***", text)
        text = _WORD.sub(lambda m: _without_userinfo(m[0]), text)
        text = _FILE_URL.sub("[path]", text)
        text = _QUOTED_PATH.sub(lambda m: m["quote"] + _name_alone(m["path"]) + m["quote"], text)
        text = _PATH.sub(lambda m: _name_alone(m[0]), text)
        text = escape_controls(text)
        return text if len(text) <= MAX_LINE_CHARACTERS else text[:MAX_LINE_CHARACTERS] + " … (cut)"


def _forms(secret: str) -> set[str]:
    """As a trainer may write it: whole, line by line, and each of these within JSON or a Python literal."""
    plain = {secret, *(line.strip() for line in secret.splitlines())}
    quoted = {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in plain for ascii_only in (True, False)}
    return plain | quoted | {repr(form)[1:-1] for form in plain}


def _without_userinfo(word: str) -> str:
    """A password may have an @, and even a slash: all up to the last @ goes, where it can be one."""
    first, *others = word.split("://")
    for position, other in enumerate(others):
        userinfo, at, host = other.rpartition("@")
        if at and ("/" not in userinfo or ":" in userinfo.partition("/")[0]):
            others[position] = f"***@{host}"
    return "://".join((first, *others))


def _name_alone(path: str) -> str:
    parts = [part for part in re.split(r"[/\\]", path) if part]
    return f"[path]/{parts[-1]}" if len(parts) > 1 else "[path]"


class Reader:
    """One stream of a trainer: raw lines in, readable ones out. Remembers whether it is within a traceback."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._trace: deque[str] | None = None
        self._num_traced = 0
        self._has_kind = False
        self._in_warning = False
        self.last_traceback = ""
        """The last one that was left out, as written but bounded; for the operator."""

    def read(self, line: str) -> Iterator[tuple[str, bool]]:
        """What is to be shown of a line: text, and whether it is a remark of ours."""
        line = line.rstrip("\r\n").rpartition("\r")[2]  # of a progress bar, what a terminal would show
        begins = _TRACE_BEGINS.search(line) is not None
        if self._trace is not None:
            if begins or _TRACE_GOES_ON.search(line):
                self._has_kind = _TRACE_WITH_KIND.search(line) is not None if begins else self._has_kind
                self._keep(line)
                yield from self._end_in_time()
                return
            if self._has_kind and (ends := _TRACE_ENDS.match(line)):
                self._keep(line)
                yield from self._close(ends["kind"])
                return
            yield from self._close()
        if begins:
            self._trace, self._num_traced = deque(maxlen=MAX_TRACEBACK_LINES), 0
            self._has_kind = _TRACE_WITH_KIND.search(line) is not None
            self._keep(line)
            return
        if _FRAME.search(line) or (self._in_warning and line.startswith("  ")):
            return
        self._in_warning = bool(_WARNING.search(line))
        if (told := self._structured(line)) is not None:
            yield from told
        elif line.strip():
            yield self._redactor.clean(line), False

    def interrupt(self) -> Iterator[tuple[str, bool]]:
        """Lines are missing here, or it is the end."""
        if self._trace is not None:
            yield from self._close()

    def _end_in_time(self) -> Iterator[tuple[str, bool]]:
        """What goes on and on was no traceback, or is not waited for: what follows is shown."""
        if self._num_traced >= MAX_TRACEBACK_LINES_LEFT_OUT:
            yield from self._close()

    def _keep(self, line: str) -> None:
        assert self._trace is not None  # noqa: S101 - asked for only within one
        self._trace.append(line)
        self._num_traced += 1

    def _close(self, kind: str | None = None) -> Iterator[tuple[str, bool]]:
        trace, self._trace = self._trace or (), None
        self.last_traceback = "\n".join(trace)[-MAX_TRACEBACK_CHARACTERS:]
        of = f" of {escape_controls(kind)[:80]}" if kind else ""
        yield f"a traceback{of} is left out ({self._num_traced} lines); the operator has it", True

    def _structured(self, line: str) -> Iterator[tuple[str, bool]] | None:
        """An event of our own logging; None for anything else."""
        if not line.startswith("{"):
            return None
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not (isinstance(event, dict) and isinstance(event.get("event"), str)):
            return None
        return self._event(event, line)

    def _event(self, event: Mapping[str, object], line: str) -> Iterator[tuple[str, bool]]:
        level = str(event.get("level", "info"))
        words = [f"{level}: {event['event']}"]
        for name, value in event.items():
            simple = isinstance(value, _PLAIN) or (
                isinstance(value, list) and all(isinstance(each, _PLAIN) for each in value)
            )
            if name not in _HIDDEN and simple:
                words.append(f"{name}={value}")
        yield self._redactor.clean(" ".join(words)), False
        if "exception" in event or "stack" in event:
            self.last_traceback = line[:MAX_TRACEBACK_CHARACTERS]
            yield "its traceback is left out; the operator has it", True
