"""Work ahead and behind: in order, bounded, whole at the end, errors told once. No timing: threads are held by events."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from stratascope.extract.run.pipeline import BackgroundQueue, prefetch


def test_what_is_made_ahead_comes_in_order_and_no_more_than_depth_is_made() -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return item * item

    with ThreadPoolExecutor(3) as pool:
        coming = prefetch(pool, make, range(20), depth=4)
        assert [next(coming), next(coming)] == [0, 1]
        pool.submit(int).result()
        assert max(made) <= 1 + 4 + 1
        assert list(coming) == [k * k for k in range(2, 20)]
        assert sorted(made) == list(range(20))


def test_an_error_ahead_comes_where_its_turn_is() -> None:
    def make(item: int) -> int:
        if item == 3:
            raise ValueError("the fourth")
        return item

    with ThreadPoolExecutor(2) as pool:
        coming = prefetch(pool, make, range(8), depth=8)
        assert [next(coming) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="the fourth"):
            next(coming)


@pytest.mark.parametrize(("threads", "waiting"), [(1, 1), (2, 1), (1, 3)])
def test_who_is_too_far_ahead_waits(threads: int, waiting: int) -> None:
    gate, handed, done = threading.Event(), [], []
    full = threading.Semaphore(0)

    def work(item: int) -> None:
        gate.wait()
        done.append(item)

    def produce() -> None:
        with BackgroundQueue("test", threads=threads, waiting=waiting) as behind:
            for item in range(12):
                if len(handed) == threads + waiting:
                    full.release()  # the next submit must block
                behind.submit(work, item)
                handed.append(item)

    producer = threading.Thread(target=produce)
    producer.start()
    full.acquire()
    producer.join(0.05)
    assert handed == list(range(threads + waiting))
    assert not done
    gate.set()
    producer.join()
    assert sorted(done) == list(range(12))
    assert threads > 1 or done == list(range(12))


def test_the_first_error_is_raised_once_and_what_follows_is_not_begun() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 1:
            raise OSError("no space left")

    def produce() -> None:
        with BackgroundQueue("test") as behind:
            for item in range(50):
                behind.submit(work, item)

    with pytest.raises(OSError, match="no space left") as caught:
        produce()
    assert begun == [0, 1]
    assert not getattr(caught.value, "__notes__", [])


def test_an_error_in_the_last_piece_is_raised_at_the_end() -> None:
    def produce() -> None:
        with BackgroundQueue("test") as behind:
            behind.submit(_fail, "late")

    with pytest.raises(OSError, match="late"):
        produce()


def test_what_was_handed_over_is_finished_when_the_caller_fails() -> None:
    gate, done = threading.Event(), []

    def work(item: int) -> None:
        gate.wait()
        done.append(item)

    def produce() -> None:
        with BackgroundQueue("test", waiting=3) as behind:
            for item in range(3):
                behind.submit(work, item)
            gate.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce()
    assert done == [0, 1, 2]


def test_the_callers_own_error_comes_first_and_names_the_other() -> None:
    def produce() -> None:
        with BackgroundQueue("test") as behind:
            behind.submit(_fail, "theirs")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as caught:
        produce()
    assert caught.value.__notes__ == ["also: theirs"]


def test_drained_is_done() -> None:
    done: list[int] = []
    with BackgroundQueue("test", waiting=5) as behind:
        for item in range(5):
            behind.submit(done.append, item)
        behind.drain()
        assert done == list(range(5))


def _fail(message: str) -> None:
    raise OSError(message)
