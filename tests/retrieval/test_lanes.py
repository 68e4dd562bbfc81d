"""Batches side by side: the same results in the same order, and every thread's number of cores as it was."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from foretext.model.encoder import Encoder
from foretext.model.presets import preset
from foretext.retrieval.embed import TextEncoder, batches_of
from foretext.retrieval.lanes import even_budget, lanes_for, left_to_lanes, side_by_side
from tests.conftest import made_up_texts


@pytest.fixture
def three_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_in_order_with_the_cores_shared_out(three_cores):
    def work(item):
        together.wait(timeout=30)
        return item, torch.get_num_threads(), torch.is_inference_mode_enabled(), threading.current_thread().name

    together = threading.Barrier(3)
    with torch.inference_mode():
        found = list(side_by_side(work, range(6), 3))
    assert [item for item, *_ in found] == list(range(6)) and {(cores, mode) for _, cores, mode, _ in found} == {(1, True)}
    assert torch.get_num_threads() == 3 and len({name for *_, name in found}) == 3
    seen = []
    threading.Thread(target=lambda: seen.append(torch.get_num_threads())).run()
    assert seen == [3]
    alone = list(side_by_side(lambda item: torch.get_num_threads(), range(4), 1))
    assert alone == [3] * 4


def test_a_mistake_is_told_and_nothing_more_begins(three_cores):
    begun = []

    def work(item):
        begun.append(item)
        time.sleep(0.001)
        if item == 1:
            raise ValueError("item 1")
        return item

    with pytest.raises(ValueError, match="item 1"):
        list(side_by_side(work, range(1000), 2))
    assert len(begun) < 1000 and torch.get_num_threads() == 3


def test_whoever_asks_meanwhile_gets_all_cores(three_cores):
    """A thread asks torch for its number once, and keeps it."""
    def work(item):
        started.set()
        asked.wait(timeout=30)

    started, asked, seen = threading.Event(), threading.Event(), []

    def ask():
        started.wait(timeout=30)
        seen.append(torch.get_num_threads())
        asked.set()

    other = threading.Thread(target=ask)
    other.start()
    list(side_by_side(work, range(2), 2))
    other.join()
    assert seen == [3]


def test_threads_stay_and_a_caller_who_breaks_off_waits_for_what_has_begun(three_cores):
    def name(item):
        time.sleep(0.01)
        return threading.current_thread().name

    names = [set(side_by_side(name, range(9), 3)) for _ in range(2)]
    assert names[0] == names[1] and len(names[0]) == 3
    running = []

    def work(item):
        running.append(item)
        time.sleep(0.05)
        running.remove(item)

    for _ in side_by_side(work, range(100), 3):
        break
    assert not running


def test_lanes_within_lanes(three_cores):
    found = list(side_by_side(lambda item: list(side_by_side(abs, range(-item, 0), 3)), range(6), 3))
    assert found == [list(range(item, 0, -1)) for item in range(6)]


def test_others_do_not_wait_for_everything(three_cores):
    """A short list between the items of a long one."""
    done = []

    def work(item):
        time.sleep(0.01)
        return item

    long = threading.Thread(target=lambda: done.extend(side_by_side(work, range(300), 3)))
    long.start()
    time.sleep(0.05)
    assert list(side_by_side(abs, range(-3, 0), 3)) == [3, 2, 1] and long.is_alive()
    long.join()
    assert done == list(range(300))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_forked_begins_its_own_threads(three_cores):
    assert list(side_by_side(abs, range(-4, 0), 3)) == [4, 3, 2, 1]
    child = os.fork()
    if not child:
        found = list(side_by_side(abs, range(-4, 0), 3))
        os._exit(0 if found == [4, 3, 2, 1] else 1)
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise AssertionError("the child waits for threads that it does not have")
    assert status == 0


def test_the_cores_are_left_to_lanes_and_to_nobody_elses_loss(three_cores):
    def cores_of_a_new_thread():
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return seen.pop()

    seen = []
    with pytest.raises(KeyError), left_to_lanes(3):
        assert torch.get_num_threads() == 1 and cores_of_a_new_thread() == 3
        assert lanes_for(10**6, 1, torch.device("cpu")) == 3
        assert list(side_by_side(lambda item: torch.get_num_threads(), range(4), 3)) == [1] * 4
        with left_to_lanes(3):  # a part of it
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 3 == cores_of_a_new_thread()
    with left_to_lanes(1):
        assert torch.get_num_threads() == 3


def test_few_tokens_and_other_devices_have_one_lane(three_cores):
    assert [lanes_for(tokens, 1024, torch.device("cpu")) for tokens in (0, 2047, 2048, 10**6)] == [1, 1, 2, 3]
    assert lanes_for(10**6, 1024, torch.device("cuda")) == 1
    torch.set_num_threads(9)
    assert lanes_for(10**6, 1024, torch.device("cpu")) == 8


def test_lanes_of_several_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    assert list(side_by_side(lambda item: torch.get_num_threads(), range(4), 2)) == [2] * 4 and torch.get_num_threads() == 5
    torch.set_num_threads(before)


@pytest.mark.parametrize("lanes", [2, 3, 8])
def test_batches_are_even(lanes):
    draw = np.random.default_rng(lanes)
    for count in (1, 5, 60, 700, 5000):
        lengths = draw.integers(1, 512, count)
        total, longest = int(lengths.sum()), int(lengths.max())
        budget = even_budget(total, longest, 4096, lanes)
        batches = list(batches_of(np.argsort(-lengths, kind="stable"), lengths, budget))
        assert longest <= budget <= 4096
        assert budget == 4096 or len(batches) <= lanes * -(-total // (4096 * lanes))


def test_vectors_are_those_of_one_lane(tokenizer, three_cores):
    torch.manual_seed(0)
    model = TextEncoder(Encoder(preset("bert-tiny", tokenizer.size, width=32, max_len=64)), tokenizer, "mean")
    texts = made_up_texts(400, seed=3)
    lanes = []
    model_embed, model.embed = model.embed, lambda *args: (lanes.append(threading.current_thread().name), model_embed(*args))[1]
    found = model.encode(texts)
    assert len(set(lanes)) == 3 and "MainThread" not in lanes
    torch.set_num_threads(1)
    np.testing.assert_allclose(found, model.encode(texts), rtol=0, atol=1e-6)
    assert lanes[-1] == "MainThread"
