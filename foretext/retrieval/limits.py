"""What a product should be above to be worth keeping, from a sample of the rows: a scan that begins with it keeps little and sorts it once.

A guess is all it is. A scan says of which queries it kept too little, and those are scanned without it.

Legend: Q queries, N rows in all, S rows in the sample.
"""

import math

import numpy as np

SAMPLE = 4096  # rows
LEAST, FEWEST = 4 * SAMPLE, 16  # rows in all, and queries, from which on a sample pays
RUN = 16  # rows of it that are read together
GROUPS = 512  # of rows of the sample, of each of which only the highest product counts: nearly all that is high, and cheap to find


def sampled(size: int, sample: int = SAMPLE) -> np.ndarray:
    """Numbers of the rows to sample of `size`, spread over all in short runs."""
    runs = sample // RUN
    return ((np.arange(runs) * size // runs)[:, None] + np.arange(RUN)).ravel()


def highest(products, groups: int):
    """(S, Q) products of a sample -> (groups, Q) the highest of each group."""
    return products.view(-1, groups, products.shape[1]).amax(dim=0)


def likely(highest, sample: int, size: int, count: int) -> tuple:
    """From (groups, Q) of a sample's groups: fp32 (Q,) what at least `count` of all `size` products are above, but for one query in some
    thousands, and (Q,) about the `count`-th highest of all."""
    expected = count * sample / size  # of the best `count`, so many are in the sample: a count after Poisson, which
    place = min(int(expected + 4 * expected**0.5) + 2, len(highest))  # is hardly ever this high
    best = highest.T.contiguous().topk(place, dim=1).values
    return best[:, -1], best[:, min(math.ceil(expected), place) - 1]
