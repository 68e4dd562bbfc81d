"""Generation from a made-up model: greedy, sampling and beams, against exhaustive search and by hand."""

import itertools

import pytest
import torch
from pydantic import ValidationError

from foretext.model.generation import GenerationConfig, choose, generate

V, END = 5, 1
NOTHING_FORBIDDEN = torch.zeros(V, dtype=torch.bool)


class Chain:
    """Logits depend on the two newest tokens; it remembers whole hypotheses, so that `select` is checked too."""

    def __init__(self, seed: int = 0):
        self.table = 2 * torch.randn(V, V, V, generator=torch.Generator().manual_seed(seed))
        self.read = None

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        self.read = ids if self.read is None else torch.cat((self.read, ids), 1)
        before = self.read[:, -2] if self.read.shape[1] > 1 else torch.zeros_like(self.read[:, 0])
        return self.table[before, self.read[:, -1]]

    def select(self, rows: torch.Tensor) -> None:
        self.read = self.read[rows]

    def log_p(self, first: int, made: tuple[int, ...]) -> float:
        history, total = [0, first], 0.0
        for token in made:
            total += float(self.table[history[-2], history[-1]].log_softmax(0)[token])
            history.append(token)
        return total


def best_by_hand(chain: Chain, first: int, longest: int, penalty: float) -> list[int]:
    """Over all texts that end within `longest` tokens, and those cut there."""
    inner = [token for token in range(V) if token != END]
    texts = [(*body, END) for n in range(longest) for body in itertools.product(inner, repeat=n)]
    texts += list(itertools.product(inner, repeat=longest))
    best = max(texts, key=lambda text: chain.log_p(first, text) / len(text) ** penalty)
    return [token for token in best if token != END]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [0.5, 1.0])
def test_wide_beams_find_the_best_text(seed, penalty):
    firsts = torch.tensor([[0], [2], [3]])
    config = GenerationConfig(longest=4, beams=400, length_penalty=penalty)  # as many as there are texts
    found = generate(Chain(seed), firsts, END, NOTHING_FORBIDDEN, config)
    assert [text.tolist() for text in found] == [best_by_hand(Chain(seed), int(f), 4, penalty) for f in firsts]


def test_greedy_takes_the_likeliest_and_stops_at_the_end():
    chain = Chain(2)
    found = generate(chain, torch.tensor([[0], [2], [3]]), END, NOTHING_FORBIDDEN, GenerationConfig(longest=6))
    for first, made in zip((0, 2, 3), found):
        history = [0, first]
        for token in [*made.tolist(), *([END] if len(made) < 6 else [])]:
            assert token == int(chain.table[history[-2], history[-1]].argmax())
            history.append(token)
        assert END not in made


def test_a_prompt_of_several_tokens_is_read_whole():
    chain = Chain()
    generate(chain, torch.tensor([[0, 3, 4]]), END, NOTHING_FORBIDDEN, GenerationConfig(longest=2))
    assert chain.read[0, :3].tolist() == [0, 3, 4]


def test_forbidden_ids_are_not_made():
    never = torch.tensor([True, False, False, True, False])
    for config in (GenerationConfig(longest=8), GenerationConfig(longest=8, beams=3), GenerationConfig(longest=8, temperature=5.0)):
        for text in generate(Chain(), torch.tensor([[0], [4]]), END, never, config):
            assert set(text.tolist()) <= {2, 4}


def test_sampling_follows_the_probabilities():
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(20_000, -1)

    def shares(**options) -> list[float]:
        drawn = choose(logits, GenerationConfig(**{"temperature": 1.0} | options), torch.Generator().manual_seed(0))
        return (torch.bincount(drawn, minlength=4) / len(drawn)).tolist()

    assert shares() == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.015)
    assert shares(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.015)
    assert shares(top_p=0.75) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.015)  # the first two hold .75 already
    assert shares(top_p=0.76) == pytest.approx([0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0], abs=0.015)
    assert shares(top_p=0.01) == [1, 0, 0, 0]
    assert shares(temperature=0.5) == pytest.approx([c * c / 0.345 for c in (0.5, 0.25, 0.15, 0.1)], abs=0.015)


def test_the_seed_decides_the_sample():
    def sample(seed: int) -> list[list[int]]:
        config = GenerationConfig(longest=20, temperature=1.0, seed=seed)
        return [text.tolist() for text in generate(Chain(), torch.tensor([[0]] * 5), END, NOTHING_FORBIDDEN, config)]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


@pytest.mark.parametrize("options", [{"temperature": 1.0, "beams": 2}, {"top_k": 3}, {"top_p": 0.5}, {"length_penalty": 0.6}])
def test_settings_without_effect_are_refused(options):
    with pytest.raises(ValidationError, match="no effect"):
        GenerationConfig(**options)
