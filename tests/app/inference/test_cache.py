import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.inference.cache import LoadingCache


def test_many_who_ask_at_once_get_one() -> None:
    cache: LoadingCache[str, object] = LoadingCache(2)
    made: list[object] = []
    everybody_asked = threading.Barrier(8, timeout=10)

    def make() -> object:
        made.append(object())
        return made[-1]

    def ask() -> object:
        everybody_asked.wait()
        return cache.get("a", make)

    with ThreadPoolExecutor(8) as threads:
        answers = [future.result() for future in [threads.submit(ask) for _ in range(8)]]
    assert len(made) == 1
    assert answers == made * 8


def test_the_least_recently_used_goes_first() -> None:
    cache: LoadingCache[str, str] = LoadingCache(2)
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key

    for key in ["a", "b", "a", "c", "a", "b"]:
        assert cache.get(key, lambda k=key: make(k)) == key
    assert made == ["a", "b", "c", "b"]
    assert len(cache) == 2


def test_a_failure_is_told_and_forgotten() -> None:
    cache: LoadingCache[str, str] = LoadingCache(2)

    def fail() -> str:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        cache.get("a", fail)
    assert cache.get("a", lambda: "fine") == "fine"
