"""`foretext init`: a commented settings file to start from."""

from foretext.config import commented_yaml
from foretext.errors import UserError
from foretext.objectives import OBJECTIVES
from foretext.verbs.retriever import FinetuneConfig
from foretext.verbs.pretrain import PretrainConfig


def settings_file(what: str) -> str:
    """YAML with every setting of `pretrain OBJECTIVE` or `finetune retriever`, its default and what it means."""
    if what == "retriever":
        values = {"data": "data/my-beir-folder", "output": "runs/retriever", "encoder": {"start": "runs/pretrained"}}
        return "# foretext finetune retriever THIS.yaml\n" + commented_yaml(FinetuneConfig, values)
    if what not in OBJECTIVES:
        raise UserError(f"nothing is called {what!r}: choose one of {', '.join(OBJECTIVES)}, or retriever")
    values = {"store": "stores/mine", "output": f"runs/{what}"}
    text = commented_yaml(PretrainConfig, values)
    before, _, after = text.partition("\nobjective: {")
    rest = after.partition("\n")[2]
    own = commented_yaml(OBJECTIVES[what].Config, indent=2).rstrip("\n")
    if OBJECTIVES[what].reads != "pairs":  # a section without effect is no section
        start, end = rest.index("pairs:"), rest.index("valid_share:")
        rest = rest[:start] + rest[end:]
    return f"# foretext pretrain THIS.yaml\n{before}\nobjective:\n  name: {what}\n{own}\n{rest}"
