"""The broker message about a job: a hint that carries the job's id and nothing else.

Lost, doubled, late or forged, it changes latency only: the worker asks the ledger. This is the one agreement between
the programs that send (the API, and the sweeper in each worker) and those that receive.
"""

import time
from threading import Lock
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import KombuError, OperationalError

from app.ids import is_id

_log = structlog.get_logger(__name__)

TASK_NAME = "must.adapt"
QUEUE = "must"


def is_job_id(value: object) -> bool:
    """Whether a message from outside can be about a job at all."""
    return isinstance(value, str) and is_id("job", value)


class HintSender:
    """Sends by task name, so that the sender needs none of the worker's code. Safe to share between threads."""

    PAUSE_S = 5.0
    """After a failure, sends are skipped for this long: a dead broker slows one request down, not each."""

    def __init__(self, broker_url: str) -> None:
        """Opens no connection yet."""
        self._options = _sender_options(broker_url)
        self._celery = self._connected_to_nothing()
        transport = self._celery.connection_for_write()
        self._broker_errors: tuple[type[Exception], ...] = (
            OperationalError,
            KombuError,
            OSError,
            *transport.connection_errors,
            *transport.channel_errors,
            RuntimeError,  # the pool was closed under us, see below
        )
        self._lock = Lock()
        self._closed_until = 0.0

    def send(self, job_id: str) -> bool:
        """True when the broker took the message. False, after seconds at most and with a line in the log, when it is
        down: the sweeper makes up for it."""
        with self._lock:
            if time.monotonic() < self._closed_until:
                return False
        for attempt in (1, 2):  # a pooled connection may have died quietly since its last use; a new one is tried
            try:
                self._celery.send_task(TASK_NAME, args=[job_id], queue=QUEUE, retry=False, ignore_result=True)
            except self._broker_errors as e:
                _log.warning("hint_not_sent", job_id=job_id, attempt=attempt, error=type(e).__name__)
                broken, self._celery = self._celery, self._connected_to_nothing()
                broken.pool.force_close_all()  # a sender beside us may still use it: it will fail and come here too
            else:
                return True
        with self._lock:
            self._closed_until = time.monotonic() + self.PAUSE_S
        return False

    def is_reachable(self) -> bool:
        """Ask the broker; takes a few seconds at most when it is down."""
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=2)
        except self._broker_errors:
            return False
        return True

    def close(self) -> None:
        """Drop the connections."""
        self._celery.close()

    def _connected_to_nothing(self) -> Celery:
        celery = Celery("must-hints", set_as_current=False)
        celery.conf.update(self._options)
        return celery


def _sender_options(broker_url: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "broker_url": broker_url,
        "broker_connection_timeout": 2,
        "broker_connection_retry": False,
        "task_default_queue": QUEUE,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_publish_retry": False,
    }
    if broker_url.startswith("redis"):
        options["broker_transport_options"] = {"socket_connect_timeout": 2, "socket_timeout": 5}
    elif broker_url.startswith("amqp"):
        # Without confirmation a message may vanish in a broker that is going down.
        options["broker_transport_options"] = {"confirm_publish": True, "read_timeout": 5, "write_timeout": 5}
    return options
