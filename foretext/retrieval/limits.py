"""What a product should be above to be worth keeping, from a sample of the rows: a scan that begins with it keeps little and sorts it once.

A guess is all it is. A scan says of which queries it kept too little, and those are scanned without it.

Legend: Q queries, D dimensions, N rows in all, S rows in the sample.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

SAMPLE = 4096  # rows
LEAST, FEWEST = 4 * SAMPLE, 16  # rows in all, and queries, from which on a sample pays
RUN = 16  # rows of it that are read together


@dataclass(frozen=True)
class Likely:
    """What is likely of all products, by those of a sample."""

    limits: Any  # fp32 (Q,): more than `keep` rows are above it, but for one query in some thousands
    nearest: Any  # fp32 (Q,): about the k-th highest of all


def sampled(size: int) -> np.ndarray:
    """Numbers of the rows to sample of `size`, spread over all in short runs."""
    runs = SAMPLE // RUN
    return ((np.arange(runs) * size // runs)[:, None] + np.arange(RUN)).ravel()


def likely(queries, sample, size: int, k: int, keep: int) -> Likely:
    """From fp32 queries (Q, D) and the sampled rows (S, D) of `size`."""
    expected = keep * len(sample) / size  # of the best `keep` so many are in the sample: a count after Poisson, which
    place = min(int(expected + 4 * expected**0.5) + 2, len(sample))  # is hardly ever this high
    highest = torch.cat([(part @ sample.T).topk(place, dim=1).values for part in queries.split(256)])
    return Likely(highest[:, -1], highest[:, min(-(-k * len(sample) // size), place) - 1])
