"""foretext turns a pile of your own text into a text encoder you can search with.

Names are loaded when they are first used, so that `import foretext` costs nothing:

    import foretext as ft
    ft.prepare(["notes/*.txt"], "stores/notes")
    ft.pretrain(ft.PretrainConfig(store="stores/notes", output="runs/notes", objective={"name": "contrastive"}))
    model = ft.TextEncoder.load("runs/notes/export")
"""

import importlib
from typing import Any

_HOMES = {  # public name -> its module, and after a colon its name there where that is another
    "prepare": "foretext.text.prepare",
    "Store": "foretext.text.store",
    "Tokenizer": "foretext.text.tokenizer",
    "Encoder": "foretext.model.encoder",
    "EncoderConfig": "foretext.model.encoder",
    "preset": "foretext.model.presets",
    "objectives": "foretext.objectives",
    "train": "foretext.training.loop",
    "TrainingConfig": "foretext.training.loop",
    "pretrain": "foretext.verbs.pretrain",
    "PretrainConfig": "foretext.verbs.pretrain",
    "Rounds": "foretext.training.refresh",
    "finetune": "foretext.verbs.retriever",
    "FinetuneConfig": "foretext.verbs.retriever",
    "finetune_reranker": "foretext.verbs.reranker:finetune",
    "RerankerConfig": "foretext.verbs.reranker",
    "finetune_classifier": "foretext.verbs.classifier:finetune",
    "ClassifierConfig": "foretext.verbs.classifier",
    "TextEncoder": "foretext.retrieval.embed",
    "ConversationEncoder": "foretext.retrieval.towers",
    "TextClassifier": "foretext.retrieval.classifier",
    "CrossScorer": "foretext.retrieval.rerank",
    "read_groups": "foretext.retrieval.groups",
    "evaluate": "foretext.retrieval.evaluate",
    "export": "foretext.interop.export",
    "UserError": "foretext.errors",
}

__all__ = list(_HOMES)  # noqa: PLE0604
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"foretext has no {name!r}")
    module, _, there = _HOMES[name].partition(":")
    home = importlib.import_module(module)
    return home if name == "objectives" else getattr(home, there or name)
