"""A small cache of expensive things: each is made once however many ask, the least recently used goes first."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LoadingCache(Generic[K, V]):
    """Maps keys to values that ``get`` makes on demand; safe to use from any thread."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[K, Future[V]] = OrderedDict()
        self._refreshing: dict[K, Future[V]] = {}
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made by the first caller while the others wait; an error is raised to all, not kept."""
        with self._lock:
            entry = self._entries.get(key)
            mine = entry is None
            if entry is None:
                entry = Future()
            self._hold(key, entry)
        if mine:
            try:
                entry.set_result(make())
            except BaseException as e:
                with self._lock:
                    if self._entries.get(key) is entry:
                        del self._entries[key]
                entry.set_exception(e)
                raise
        return entry.result()

    def refresh(self, key: K, make: Callable[[], V]) -> V:
        """A value made anew, with which ``get`` answers from then on; until then, and on an error, with the old one.

        Those who ask while one is being made share it, and its error.
        """
        with self._lock:
            entry = self._refreshing.get(key)
            mine = entry is None
            if entry is None:
                entry = self._refreshing[key] = Future()
        if mine:
            try:
                entry.set_result(make())
            except BaseException as e:
                with self._lock:
                    del self._refreshing[key]
                entry.set_exception(e)
                raise
            with self._lock:
                del self._refreshing[key]
                self._hold(key, entry)
        return entry.result()

    def _hold(self, key: K, entry: "Future[V]") -> None:
        self._entries[key] = entry
        self._entries.move_to_end(key)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        """Entries held or being made."""
        return len(self._entries)
