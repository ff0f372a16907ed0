"""The broker message about a job: a hint that carries the job's id and nothing else.

Lost, doubled, late or forged, it changes latency only: the worker asks the ledger. This is the one agreement between
the programs that send (the API, and the sweeper in each worker) and those that receive.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import KombuError

from app.ids import is_id

_log = structlog.get_logger(__name__)

TASK_NAME = "must.adapt"
QUEUE = "must"


def is_job_id(value: object) -> bool:
    """Whether a message from outside can be about a job at all."""
    return isinstance(value, str) and is_id("job", value)


class HintSender:
    """Sends by task name, so that the sender needs none of the worker's code. Safe to share between threads.

    Each hint has a connection of its own. Celery's pools are shared by everything in the process that names the same
    broker and stay closed once they are, and a pooled connection may have died since; a hint is worth one handshake.
    """

    PAUSE_S = 5.0
    """After a failure, sends are skipped for this long, and then one is tried: a dead broker slows one request down,
    not each."""

    ANSWER_S = 0.7
    """`is_reachable` says no when the broker has not answered by then: probes give up after a second."""

    def __init__(self, broker_url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Opens no connection yet."""
        self._clock = clock
        self._celery = Celery("must-hints", set_as_current=False)
        self._celery.conf.update(_sender_options(broker_url))
        transport = self._celery.connection_for_write()
        self._broker_errors: tuple[type[Exception], ...] = (
            KombuError,
            OSError,
            *transport.connection_errors,
            *transport.channel_errors,
        )
        self._lock = Lock()
        self._is_down = False
        self._closed_until = 0.0
        self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="broker-probe")
        self._answer: Future[bool] | None = None

    def send(self, job_id: str) -> bool:
        """True when the broker took the message. False, after seconds at most and with a line in the log, when it is
        down, full or frozen: the sweeper makes up for it."""
        if not self._may_try():
            return False
        connection = self._celery.connection_for_write()
        try:
            self._celery.send_task(
                TASK_NAME, args=[job_id], queue=QUEUE, connection=connection, retry=False, ignore_result=True
            )
        except self._broker_errors as e:
            with self._lock:
                self._is_down, self._closed_until = True, self._clock() + self.PAUSE_S
            _log.warning("hint_not_sent", job_id=job_id, error=type(e).__name__)
            connection.collect()  # without a word: the answer might never come
            return False
        with self._lock:
            self._is_down, self._closed_until = False, 0.0
        connection.release()
        return True

    def is_reachable(self) -> bool:
        """Ask the broker; takes less than a second. However many ask, it is asked once at a time. Also false for
        seconds after it did not take a hint."""
        with self._lock:
            if self._clock() < self._closed_until:
                return False
            if self._answer is None or self._answer.done():
                self._answer = self._asking.submit(self._ask)
            answer = self._answer
        try:
            return answer.result(timeout=self.ANSWER_S)
        except TimeoutError:
            return False

    def close(self) -> None:
        """Drop what is open; waits for a question that is under way, seconds at most."""
        self._asking.shutdown()
        self._celery.close()

    def _may_try(self) -> bool:
        with self._lock:
            now = self._clock()
            if now < self._closed_until:
                return False
            if self._is_down:
                self._closed_until = now + self.PAUSE_S  # for all others, while this one tries
            return True

    def _ask(self) -> bool:
        connection = self._celery.connection_for_write()
        try:
            connection.ensure_connection(max_retries=0)
        except self._broker_errors:
            connection.collect()
            return False
        connection.release()
        return True


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
    once = {"max_retries": 0}
    if broker_url.startswith("redis"):
        options["broker_transport_options"] = {**once, "socket_connect_timeout": 2, "socket_timeout": 3}
    elif broker_url.startswith("amqp"):
        # Without confirmation a message may vanish in a broker that is going down.
        options["broker_transport_options"] = {**once, "confirm_publish": True, "read_timeout": 3, "write_timeout": 3}
    return options
