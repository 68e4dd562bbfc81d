"""The gradient of one step, the same however the step is split into micro-batches and ranks.

Each loss term is a sum S over labelled items; it is divided by the number N of those items in the whole step, over all micro-batches
and ranks. A term between all rows of a step (contrastive losses) is computed once on the vectors of all rows, and its gradient with
respect to each vector is handed back to the micro-batch that made it (GradCache, arXiv 2101.06983).
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foretext.objectives.base import Batch, Objective, Step
from foretext.training.distributed import World

Sums = dict[str, tuple[Tensor | float, Tensor | float]]  # name -> (sum, count) over this rank


def backward(model: nn.Module, batches: Sequence[Batch], world: World) -> Sums:
    """Add the gradient of one step to `.grad`. Nothing in here reads a number from a GPU, so that its queue never runs empty.

    Args:
        model: an objective, or what `World.wrap` made of one.
        batches: this rank's micro-batches, at least one.
    Returns:
        Loss terms and metrics as sums and counts, for this rank.
    """
    objective: Objective = getattr(model, "module", model)
    counts = total_counts(batches, world)
    split = objective.couples and (len(batches) > 1 or world.size > 1)
    sums: Sums = {}
    if split:
        gradients, states = couple_split(objective, batches, counts, world, sums)
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        if split:
            set_random_state(states[i], world.device)
        batch = batch.to(world.device)
        with world.sync(model, now=last):  # gradients travel once, with the last micro-batch
            step = model(batch)
            if objective.couples and not split:
                joint = objective.couple(step.vectors, step.rows, batch)
                step.terms |= joint.terms
                step.metrics |= joint.metrics
            loss = total(objective, step, counts)
            if split:
                loss = loss + sum((step.vectors[name] * gradient[i]).sum() for name, gradient in gradients.items())
            # DDP averages over ranks, while our terms are already divided by counts over all ranks: undo the average here, once.
            (loss * world.size).backward()
        add(sums, step, batch.counts)
    return sums


def total(objective: Objective, step: Step, counts: dict[str, int]) -> Tensor | float:
    """The loss of a micro-batch: the sum over terms of weight * S / N."""
    return sum(objective.weights.get(name, 1.0) * value / counts[name] for name, value in step.terms.items() if counts[name])


def total_counts(batches: Sequence[Batch], world: World) -> dict[str, int]:
    """Labelled items of the whole step, by loss term."""
    counts = Counter()
    for batch in batches:
        counts.update(batch.counts)
    names = sorted(counts)
    if world.size == 1:
        return {name: counts[name] for name in names}
    summed = world.sum(torch.tensor([counts[name] for name in names], dtype=torch.int64))  # not on a GPU: it would finish the step before
    return dict(zip(names, summed.tolist()))


def couple_split(objective: Objective, batches: Sequence[Batch], counts: dict[str, int], world: World,
                 sums: Sums) -> tuple[dict[str, list[Tensor]], list]:
    """The gradient of the coupled terms with respect to every vector of this rank.

    Returns:
        name -> one gradient tensor per micro-batch; and the random state before each micro-batch, so that dropout can repeat.
    """
    made, rows, states = [], [], []
    with torch.no_grad():
        for batch in batches:
            states.append(random_state(world.device))
            step = objective.represent(batch.to(world.device))
            made.append(step.vectors)
            rows.append(step.rows)
    gathered, places = {}, {}
    for name in made[0]:
        everyone, places[name] = world.gather_rows(torch.cat([vectors[name] for vectors in made]))
        gathered[name] = everyone.requires_grad_()
    all_rows = {name: world.gather_rows(torch.cat([r[name] for r in rows]))[0] for name in rows[0]}
    joint = objective.couple(gathered, all_rows, batches[0].to(world.device))
    gradients = torch.autograd.grad(total(objective, joint, counts), list(gathered.values()), materialize_grads=True)
    for name, value in joint.terms.items():  # every rank holds the same joint sum: report it once
        sums[name] = (value.detach() / world.size, 0)
    for name, (value, count) in joint.metrics.items():
        sums[name] = (value / world.size, count / world.size)
    parts = {}
    for name, gradient in zip(gathered, gradients):
        sizes = [len(vectors[name]) for vectors in made]
        parts[name] = gradient[places[name] : places[name] + sum(sizes)].split(sizes)
    return parts, states


def add(sums: Sums, step: Step, counts: dict[str, int]) -> None:
    """Add a micro-batch's terms and metrics to running sums."""
    for name, count in counts.items():
        value = step.terms[name].detach() if name in step.terms else 0.0
        before = sums.get(name, (0.0, 0))
        sums[name] = (before[0] + value, before[1] + count)
    for name, (value, count) in step.metrics.items():
        before = sums.get(name, (0.0, 0))
        sums[name] = (before[0] + value, before[1] + count)


@torch.no_grad()
def measure(objective: Objective, batches: Sequence[Batch], device: torch.device) -> Sums:
    """Losses and metrics of one validation step, without gradient, by this process alone."""
    sums: Sums = {}
    steps = [objective(batch.to(device)) for batch in batches]
    for step, batch in zip(steps, batches):
        add(sums, step, batch.counts)
    if objective.couples:
        vectors = {name: torch.cat([s.vectors[name] for s in steps]) for name in steps[0].vectors}
        rows = {name: torch.cat([s.rows[name] for s in steps]) for name in steps[0].rows}
        joint = objective.couple(vectors, rows, batches[0].to(device))
        add(sums, joint, dict.fromkeys(joint.terms, 0))
    return sums


def random_state(device: torch.device) -> list[Tensor]:
    """The state of the generators that dropout uses."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_random_state(state: list[Tensor], device: torch.device) -> None:
    """Undo `random_state`."""
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:  # a run that began on a CPU has none for a GPU
        torch.cuda.set_rng_state(state[1], device)
