"""Logs as events with fields: JSON lines on stderr, or coloured text on a terminal.

Libraries that use the standard logging module come out in the same form. Values from users cannot break a line or
steer a terminal: JSON escapes control characters, and on a terminal they are escaped first.
"""

import logging
import re
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# Without the frames' variables: they hold passwords and people's images.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def configure_logging(level: str = "INFO") -> None:
    """Set up logging for this process; call it once, first."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[Processor]
    if sys.stderr.isatty():
        last = [_escape_controls, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    else:
        last = [_TRACEBACKS, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    # open_clip tells each step of loading a model on the root logger itself, which nobody else uses.
    handler.addFilter(lambda record: record.name != "root" or record.levelno >= logging.WARNING)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.getLogger("alembic").setLevel("WARNING")  # says "context" at each start, and nothing that matters


def escape_controls(text: str) -> str:
    """The text on one line and harmless on a terminal; what JSON cannot hold is replaced."""
    return _CONTROL.sub(lambda m: ascii(m[0])[1:-1], text.encode("utf-8", "replace").decode())


def _escape_controls(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:  # noqa: ARG001 - structlog's signature
    def escape(value: Any) -> Any:
        return escape_controls(value) if isinstance(value, str) else value

    return {key: escape(value) for key, value in event.items()}
