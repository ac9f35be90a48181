"""Made once, whoever asks at the same time; never copied."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lorif_hf.storage.once import Once


def test_a_value_is_made_once_a_key():
    once, made = Once(), []
    for key in ("a", "b", "a", "b", "a"):
        assert once.get(key, lambda key=key: made.append(key) or key.upper()) == key.upper()
    assert made == ["a", "b"]


def test_threads_that_ask_at_the_same_time_get_the_same_value():
    once, made, barrier = Once(), [], threading.Barrier(8)
    pause = threading.Event()

    def make():
        made.append(1)
        pause.wait(0.05)
        return object()

    def ask(_):
        barrier.wait(30)
        return once.get("key", make)

    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(ask, range(8)))
    assert len(made) == 1 and len({id(value) for value in values}) == 1


def test_a_slow_value_holds_up_no_other_key():
    once, begun, go_on = Once(), threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(30)
        return "slow"

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(once.get, "slow", slow)
        assert begun.wait(30) and once.get("quick", lambda: "quick") == "quick"
        go_on.set()
        assert waiting.result(30) == "slow"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_is_raised_and_the_next_one_tries_again(error):
    once = Once()

    def fail():
        raise error("no")

    for _ in range(2):
        with pytest.raises(error, match="no"):
            once.get("key", fail)
    assert once.get("key", lambda: 3) == 3


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda once: pickle.loads(pickle.dumps(once))])
def test_a_copy_is_empty_and_works(duplicate):
    once = Once()
    once.get("key", threading.Lock)  # what no copy can have
    other = duplicate(once)
    assert other.get("key", lambda: "new") == "new"
    assert once.get("key", lambda: "new") != "new"
