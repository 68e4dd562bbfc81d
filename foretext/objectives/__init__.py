"""The table of objectives, and that of the tasks of fine-tuning that are not among them.

A new one is a new file and a line here; two that are one paper's family share a file.
"""

from foretext.objectives.base import Objective
from foretext.objectives.classify import Classify
from foretext.objectives.clm import CLM
from foretext.objectives.condenser import CoCondenser, Condenser
from foretext.objectives.contrastive import Contrastive
from foretext.objectives.convert import ConveRT
from foretext.objectives.dual import Dual
from foretext.objectives.electra import ELECTRA
from foretext.objectives.marge import MARGE
from foretext.objectives.mlm import MLM
from foretext.objectives.mpnet import MPNet
from foretext.objectives.rerank import Rerank
from foretext.objectives.retromae import DupMAE, RetroMAE
from foretext.objectives.seq2seq import Seq2Seq

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
        MARGE,
        Seq2Seq,
        Contrastive,
        Dual,
        ConveRT,
    )
}

TASKS: dict[str, type[Objective]] = {objective.name: objective for objective in (Rerank, Classify)}
