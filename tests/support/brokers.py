"""Brokers of a test's own, to be restarted, filled, frozen and taken away: a Redis and a RabbitMQ on ports of theirs.

With ``CI=true`` a missing program fails the test; elsewhere it is skipped.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
from kombu import Connection
from kombu.exceptions import KombuError

from tests.support.service import free_port
from tests.support.workers import wait_for

RABBITMQ_CONF = """
listeners.tcp.default = 127.0.0.1:{port}
log.console = false
log.file.level = warning
consumer_timeout = {consumer_timeout_ms}
vm_memory_high_watermark.absolute = 2GB
disk_free_limit.absolute = 1MB
"""
# How often the node looks for consumers past their time: its own 60 s would make a test as long.
RABBITMQ_ADVANCED = "[{rabbit, [{channel_tick_interval, 500}]}].\n"


class BrokerProcess:
    """A server that can be taken away and come back on the same port."""

    def __init__(self, url: str, command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        """Starts nothing yet."""
        self.url = url
        self._command = command
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self._process is None
        with (self._folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # RabbitMQ is a tree of processes
            )
        wait_for(self.answers, timeout_s=120, what=f"{self._command[0]} to answer")

    def answers(self) -> bool:
        """Whether it takes connections."""
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "broker.log").read_text()[-3000:]
        try:
            with Connection(self.url, connect_timeout=3) as connection:
                connection.ensure_connection(max_retries=0)
        except KombuError:
            return False
        return True

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it at once, or as ``number`` has it, and wait until it is gone."""
        if self._process is not None:
            self.send(number)
            self.send(signal.SIGCONT)
            self._process.wait(timeout=120)
            self.send(signal.SIGKILL)  # whatever it left
            self._process = None

    def restart(self) -> None:
        """Take it away without a word, and bring it back."""
        self.stop()
        self.start()

    def send(self, number: signal.Signals) -> None:
        """A signal to the server and all that it started."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile it takes connections and never answers."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)


class RedisServer(BrokerProcess):
    """A Redis that keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        program = _program("redis-server")
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
        super().__init__(f"redis://127.0.0.1:{port}/0", [program, *options], folder, {})

    @property
    def client(self) -> "redis.Redis[bytes]":
        """To look and meddle."""
        return redis.Redis.from_url(self.url)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Meanwhile whatever needs memory is refused."""
        self.client.config_set("maxmemory-policy", "noeviction")
        self.client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            self.client.config_set("maxmemory", 0)


class RabbitMQServer(BrokerProcess):
    """A RabbitMQ node without plugins, and an epmd of its own."""

    def __init__(self, folder: Path, *, consumer_timeout_ms: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port, dist_port, epmd_port = free_port(), free_port(), free_port()
        (folder / "rabbitmq.conf").write_text(RABBITMQ_CONF.format(port=port, consumer_timeout_ms=consumer_timeout_ms))
        (folder / "advanced.config").write_text(RABBITMQ_ADVANCED)
        (folder / "plugins").write_text("[].\n")
        (folder / ".erlang.cookie").write_text("only-this-test")
        (folder / ".erlang.cookie").chmod(0o400)
        environment = {
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(epmd_port),
            "RABBITMQ_NODENAME": f"must-{port}@localhost",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none",
        }
        self._epmd_command = [_program("epmd"), "-port", str(epmd_port), "-address", "127.0.0.1"]
        self._epmd: subprocess.Popen[bytes] | None = None
        super().__init__(f"amqp://guest:guest@127.0.0.1:{port}//", [_program("rabbitmq-server")], folder, environment)

    def start(self) -> None:
        """Start it, and wait until it answers: many seconds of computing."""
        if self._epmd is None:  # in the foreground: else the node leaves a daemon behind
            self._epmd = subprocess.Popen(self._epmd_command, cwd=self._folder, stderr=subprocess.DEVNULL)
        super().start()

    def close(self) -> None:
        """End everything."""
        self.stop()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(timeout=60)


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A running Redis, gone afterwards."""
    server = RedisServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def rabbitmq_server(folder: Path, *, consumer_timeout_ms: int) -> Iterator[RabbitMQServer]:
    """A running RabbitMQ, gone afterwards. A message that is not acknowledged for as long costs its consumer."""
    server = RabbitMQServer(folder, consumer_timeout_ms=consumer_timeout_ms)
    try:
        server.start()
        yield server
    finally:
        server.close()


def _program(name: str) -> str:
    # Debian's rabbitmq-server on the PATH is a wrapper that changes the user and forgets the environment.
    found = shutil.which(name, path=f"/usr/lib/rabbitmq/bin{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        message = f"there is no {name} on this machine"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found
