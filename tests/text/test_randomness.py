"""Random numbers by address: the published function, the same on every path, and random."""

import zlib

import numpy as np
import pytest
import torch

from foretext.text import randomness
from foretext.text.randomness import GOLDEN, bits, example_keys, integers, mix, permutation, uniform


def test_the_published_numbers_of_splitmix64():
    """The first outputs of the generator with seed 0 (Steele, Lea, Flood 2014; the vector used by every port)."""
    states = np.array([(i * GOLDEN) % 2**64 for i in (1, 2, 3)], dtype=np.uint64).view(np.int64)
    numbers = mix(torch.from_numpy(states)).numpy().view(np.uint64)
    assert [hex(x) for x in numbers] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_numpy_and_torch_agree_bit_for_bit():
    x = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 10_000))
    x[:4] = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    assert torch.equal(randomness._mix_numpy(x), randomness._mix_torch(x))


def test_mix_leaves_its_argument_alone():
    x = torch.arange(10)
    mix(x)
    assert torch.equal(x, torch.arange(10))


def test_an_address_is_a_number_for_ever():
    """A changed number would silently change every run: the definition again, in whole numbers of any size."""

    def finalise(x: int) -> int:
        x = ((x ^ (x % 2**64 >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    def address(seed: int, epoch: int, document: int, stream: str, position: int) -> int:
        key = finalise(seed)
        for part in (epoch, document):
            key = finalise((key + GOLDEN + part) % 2**64)
        key = finalise(key ^ (zlib.crc32(stream.encode()) * GOLDEN % 2**64))
        return finalise((key + position * GOLDEN) % 2**64)

    for at in ((1, 2, 3, "select", 4), (0, 0, 0, "replace", 0), (12345, 7, 2**40, "decoder_pool", 8192 * 255 + 8191)):
        seed, epoch, document, stream, position = at
        found = bits(example_keys(seed, epoch, torch.tensor([document])), stream, torch.tensor([position]))
        assert found.numpy().view(np.uint64)[0] == address(*at)


@pytest.mark.parametrize("what", ["seed", "epoch", "document", "stream", "position"])
def test_every_part_of_the_address_matters(what):
    def draw(**changed):
        at = {"seed": 1, "epoch": 0, "document": 5, "stream": "select", "position": 0} | changed
        keys = example_keys(at["seed"], at["epoch"], torch.tensor([at["document"]]))
        return uniform(keys, at["stream"], torch.arange(4000) + 4000 * at["position"])

    a, b = draw(), draw(**{what: "replace" if what == "stream" else 9})
    assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 4 / 4000**0.5
    assert (a == b).sum() == 0


def test_uniform_is_uniform():
    numbers = uniform(example_keys(0, 0, torch.arange(100))[:, None], "noise", torch.arange(1000)).flatten()
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers.float(), 20, 0, 1)
    chi = ((counts - 5000) ** 2 / 5000).sum()
    assert chi < 43.8  # 19 degrees of freedom, one in a thousand


def test_integers_stay_below_and_reach_the_end():
    below = torch.tensor([1, 2, 7])[:, None]
    numbers = integers(example_keys(0, 0, torch.arange(3))[:, None], "noise", torch.arange(500), below)
    assert (numbers >= 0).all() and (numbers < below).all()
    assert numbers.max(1).values.tolist() == [0, 1, 6]


def test_an_epoch_is_a_permutation_of_its_own():
    first, second = permutation(1000, 7, 0), permutation(1000, 7, 1)
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, permutation(1000, 7, 0))
