"""Log lines cannot be broken by what is logged."""

import json
import subprocess
import sys

PROGRAM = r"""
import logging, structlog
from app.log import configure_logging
configure_logging()
structlog.contextvars.bind_contextvars(job_id="job_1")
evil = "a\nb\x1b[31m\u2028c"
structlog.get_logger("x").info("uploaded", filename=evil, when=1)
logging.getLogger("library").warning("said %s", evil)
def connect(password):
    raise ValueError(evil)
try:
    connect("hunter2")
except ValueError:
    structlog.get_logger("x").exception("broke")
"""


def test_each_event_is_one_line_of_json() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert "\x1b" not in done.stderr
    first, second, third = (json.loads(line) for line in lines)
    assert (first["event"], first["job_id"], first["level"]) == ("uploaded", "job_1", "info")
    assert first["filename"] == "a\nb\x1b[31m\u2028c"
    assert second["event"].startswith("said a\nb")
    assert second["job_id"] == "job_1"
    assert third["exception"][0]["exc_type"] == "ValueError"
    assert {frame["name"] for frame in third["exception"][0]["frames"]} == {"<module>", "connect"}
    assert "hunter2" not in done.stderr.replace('connect("hunter2")', "")  # a frame's variables stay out
