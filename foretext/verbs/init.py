"""`foretext init`: a commented settings file to start from."""

from foretext.config import commented_yaml
from foretext.errors import UserError
from foretext.objectives import OBJECTIVES
from foretext.verbs.classifier import ClassifierConfig
from foretext.verbs.pretrain import PretrainConfig
from foretext.verbs.reranker import RerankerConfig
from foretext.verbs.retriever import FinetuneConfig

TASKS = {"retriever": (FinetuneConfig, "data/my-beir-folder"), "reranker": (RerankerConfig, "negatives.jsonl"),
         "classifier": (ClassifierConfig, "data/train.csv")}  # fmt: skip


def settings_file(what: str) -> str:
    """YAML with every setting of `pretrain OBJECTIVE` or `finetune TASK`, its default and what it means."""
    if what in TASKS:
        config, data = TASKS[what]
        values = {"data": data, "output": f"runs/{what}", "encoder": {"start": "runs/pretrained"}}
        return f"# foretext finetune {what} THIS.yaml\n" + commented_yaml(config, values)
    if what not in OBJECTIVES:
        raise UserError(f"nothing is called {what!r}: choose one of {', '.join((*OBJECTIVES, *TASKS))}")
    values = {"store": "stores/mine", "output": f"runs/{what}"}
    if start := OBJECTIVES[what].start:
        values |= {"encoder": {"start": start}} | {"training": OBJECTIVES[what].recipes[start]["training"]}
    text = commented_yaml(PretrainConfig, values)
    before, _, after = text.partition("\nobjective: {")
    rest = after.partition("\n")[2]
    own = commented_yaml(OBJECTIVES[what].Config, indent=2).rstrip("\n")
    if OBJECTIVES[what].reads != "pairs" and OBJECTIVES[what].pairs == "crops":  # a section without effect is no section
        start, end = rest.index("pairs:"), rest.index("valid_share:")
        rest = rest[:start] + rest[end:]
    return f"# foretext pretrain THIS.yaml\n{before}\nobjective:\n  name: {what}\n{own}\n{rest}"
