import threading
from concurrent.futures import Future, ThreadPoolExecutor

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


def test_a_refresh_is_made_once_and_only_then_answered_with() -> None:
    cache: LoadingCache[str, str] = LoadingCache(2)
    cache.get("a", lambda: "old")
    made: list[str] = []
    at_work, go_on = threading.Event(), threading.Event()

    def make() -> str:
        at_work.set()
        assert go_on.wait(30)
        made.append("new")
        return "new"

    class Watched(dict[str, Future[str]]):
        """Says when all have looked whether a refresh is at work."""

        num_looks = 0
        all_looked = threading.Event()

        def get(self, key: str) -> Future[str] | None:  # type: ignore[override]
            self.num_looks += 1
            if self.num_looks == 8:
                self.all_looked.set()
            return super().get(key)

    cache._refreshing = watched = Watched()
    with ThreadPoolExecutor(8) as threads:
        refreshes = [threads.submit(cache.refresh, "a", make) for _ in range(8)]
        assert at_work.wait(30)
        assert watched.all_looked.wait(30)
        assert cache.get("a", lambda: "never") == "old"
        go_on.set()
        assert [refresh.result(30) for refresh in refreshes] == ["new"] * 8
    assert made == ["new"]
    assert cache.get("a", lambda: "never") == "new"
    assert cache.refresh("a", lambda: "newest") == "newest", "the next one is another"


def test_a_refresh_that_fails_leaves_the_old() -> None:
    cache: LoadingCache[str, str] = LoadingCache(2)
    cache.get("a", lambda: "old")

    def fail() -> str:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        cache.refresh("a", fail)
    assert cache.get("a", lambda: "never") == "old"
    assert cache.refresh("a", lambda: "new") == "new", "a failure is forgotten"


def test_what_is_refreshed_counts_among_those_held() -> None:
    cache: LoadingCache[str, str] = LoadingCache(2)
    for key in ("a", "b", "a", "c"):
        cache.refresh(key, lambda k=key: k)
    assert len(cache) == 2
    assert cache.get("a", lambda: "never") == "a"
    assert cache.get("b", lambda: "anew") == "anew"
