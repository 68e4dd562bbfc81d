"""The table of objectives. A new one is a new file and a line here; two that are one paper's family share a file."""

from foretext.objectives.base import Objective
from foretext.objectives.clm import CLM
from foretext.objectives.condenser import CoCondenser, Condenser
from foretext.objectives.contrastive import Contrastive
from foretext.objectives.electra import ELECTRA
from foretext.objectives.mlm import MLM
from foretext.objectives.mpnet import MPNet
from foretext.objectives.retromae import DupMAE, RetroMAE

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        MLM,
        CLM,
        MPNet,
        ELECTRA,
        RetroMAE,
        DupMAE,
        Condenser,
        CoCondenser,
        Contrastive,
    )
}
