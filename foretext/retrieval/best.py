"""The best scores of each query so far, and how those of more documents join them.

Legend: Q queries, R rows (documents) of a block.
"""

import operator

import numpy as np

from foretext.errors import UserError


def merge(best, numbers, scores, start: int, keep: int):
    """The `keep` best of (best, numbers) (Q, <= keep) and a block's scores (Q, R) whose first row has number `start`.

    Nearly all of a block falls short of the scores already found, so only rows that beat the last of them are looked
    at: sorting what is left costs far less than `topk` over the block. Rows come in ascending order and the sort is
    stable, so of equal scores the lower number stays.
    """
    check_finite(scores[0], start)
    above = _compared(operator.gt, scores, best[:, -1:]) if best.shape[1] == keep else None
    flat = _true_places(above) if above is not None else None  # by query, then by row
    if flat is None or (scores.shape[1] > keep and len(flat) > 4 * keep * len(scores)):  # the first block, or one far better
        least = scores.topk(min(keep, scores.shape[1]), dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        beats = _compared(operator.ge, scores, least)
        flat = _true_places(beats if above is None else beats & above)
    query = flat // scores.shape[1]
    row = flat - query * scores.shape[1]
    return join(best, numbers, query, row + start, scores[query, row], keep)


def join(best, numbers, query, row, scores, keep: int):
    """The `keep` best of (best, numbers) and single scores: of `query`, rising, and document `row`, rising for each query."""
    import torch

    if not len(query):
        return best, numbers
    counts = torch.bincount(query, minlength=len(best))
    place = torch.arange(len(query), device=best.device) - (counts.cumsum(0) - counts)[query]
    new = best.new_full((len(best), int(counts.max())), -torch.inf)
    new[query, place] = scores
    new_numbers = numbers.new_full(new.shape, -1)
    new_numbers[query, place] = row
    best, order = torch.cat([best, new], dim=1).sort(dim=1, descending=True, stable=True)
    return best[:, :keep], torch.cat([numbers, new_numbers], dim=1).gather(1, order[:, :keep])


def check_finite(products, start: int) -> None:
    """Raise a `UserError` unless one query's products with the rows from `start` are numbers: a faulty row shows in any query's."""
    import torch

    if not torch.isfinite(products).all():
        row = int((~torch.isfinite(products)).nonzero()[0, 0]) + start
        raise UserError(f"the vector of document number {row} is not finite (nan or inf), or its product overflows")


def _compared(holds, scores, limits):
    """Where a score (Q, R) holds against its query's limit (Q, 1)."""
    import torch

    if scores.device.type == "cpu":
        return torch.from_numpy(holds(scores.numpy(), limits.numpy()))  # six times as fast as torch's comparison on the CPU
    return holds(scores, limits)


def _true_places(mask):
    """Flat indices of the true places of a bool tensor, ascending."""
    import torch

    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))  # four times as fast as torch's nonzero on the CPU
    return mask.flatten().nonzero().flatten()
