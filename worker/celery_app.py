"""Celery as a doorbell: it brings hints, the ledger owns everything else.

Early acknowledgement on purpose: a job may outlast every broker's patience (visibility timeout, consumer timeout),
and what a dead worker leaves behind is recovered by its lease, not by redelivery.
"""

import logging
import signal
from collections.abc import Callable
from typing import Any

import structlog
from celery import Celery, signals
from celery.apps.worker import Worker
from celery.worker import state
from celery.worker.consumer import Consumer
from kombu.entity import Queue
from kombu.exceptions import KombuError
from kombu.message import Message
from kombu.utils.uuid import uuid

from app.config import Settings
from app.jobs.hint import QUEUE, TASK_NAME, is_job_id

_log = structlog.get_logger(__name__)


class HintConsumer(Consumer):  # type: ignore[misc]
    """Takes nothing for granted that a broker delivers: what is no hint is dropped, with a line in the log.

    Celery's own consumer ends the worker at some messages, and others keep a place in it for ever.
    """

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Message], None]:
        """What is called with each message."""
        handle = super().create_task_handler(*arguments, **options)

        def on_message(message: Message) -> None:
            try:
                _reduce_to_hint(message)
                handle(message)
            except (KombuError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as e:
                _log.warning("hint_forged", reason=repr(e)[:200])
                if not message.acknowledged:  # it would come back, to the next worker
                    message.reject_log_error(logging.getLogger(__name__), self.connection_errors)  # type: ignore[no-untyped-call]

        return on_message


class HintWorker(Worker):  # type: ignore[misc]
    """Ends at SIGHUP as at SIGTERM: whoever started it is gone. Celery would run the whole program anew."""

    def install_platform_tweaks(self, worker: Worker) -> None:
        """Called once, when signals may come."""
        super().install_platform_tweaks(worker)
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))


def make_worker(celery: Celery) -> Worker:
    """One that has not started. There may have been others before it in this process."""
    state.should_stop = state.should_terminate = None  # of the one before
    kind = celery.subclass_with_self(HintWorker)
    return kind(without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True)


def _reduce_to_hint(message: Message) -> None:
    """Leave nothing of a message but the one argument. Raises all kinds of errors when it is no hint."""
    (job_id,), keywords, more = message.payload  # refuses all but JSON
    if message.headers["task"] != TASK_NAME or not is_job_id(job_id) or keywords or any(more.values()):
        raise ValueError("no hint")
    message.headers = {"task": TASK_NAME, "id": uuid()}


def make_celery(settings: Settings) -> Celery:
    """The worker's Celery. Needs ``settings.broker_url``; opens no connection yet."""
    if settings.broker_url is None:
        raise ValueError("a Celery worker needs MUST_BROKER_URL")
    queue = Queue(QUEUE)  # type: ignore[no-untyped-call]
    url = settings.broker_url.get_secret_value()
    celery = Celery("must-worker", set_as_current=False)
    celery.conf.update(
        broker_url=url,
        broker_connection_timeout=4,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # for ever: jobs wait in the ledger meanwhile
        broker_transport_options=_receiver_options(url),
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_queues=[queue],
        task_default_queue=QUEUE,
        task_create_missing_queues=False,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_acks_late=False,
        task_track_started=False,
        worker_consumer=HintConsumer,
        worker_pool="threads",  # one process: SIGKILL takes the supervisors, and with them their trainers
        worker_concurrency=settings.worker_concurrency,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=url.startswith("redis"),  # hints stay in the queue until a slot is free
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return celery


def keep_logging_as_it_is() -> None:
    """Stop Celery from replacing this process's logging set-up."""
    signals.setup_logging.connect(_do_nothing, weak=False)


def _do_nothing(**_: Any) -> None:
    return None


def _receiver_options(url: str) -> dict[str, Any]:
    if url.startswith("redis"):
        # Without keepalive and health checks a silently dropped connection would be listened on for ever.
        # Without a timeout a frozen broker would hold up a worker that is told to go.
        return {
            "socket_keepalive": True,
            "health_check_interval": 10,
            "socket_connect_timeout": 4,
            "socket_timeout": 5,
        }
    return {}
