"""No step asks the device for a number: on a GPU the host would wait until everything before it is done, and its queue would run empty.

A step runs on the `meta` device, whose tensors have shapes and no values. What needs a value fails there, and `Unasked` refuses what
`meta` allows and a GPU would wait for: results whose size follows from values, and copies from the host's memory. To branches that ask
`tensor.is_cuda` its tensors say yes, so that attention goes the ways of a GPU: sequences end to end for the flash kernel.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foretext.objectives.base import with_tensors
from foretext.text.batches import Batches
from foretext.training.distributed import World
from foretext.training.optim import OptimConfig, clip_gradients
from foretext.training.step import backward
from tests.objectives import table
from tests.objectives.table import TABLE, make_objective, make_source, one_step

META = World(0, 1, torch.device("meta"))
SIZED_BY_VALUES = {"_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive",
                   "unique_dim_consecutive", "isin", "bincount", "equal", "is_nonzero"}  # isin sorts out doubles first


class Unasked(TorchDispatchMode):
    """Inside this context an operation on a device raises if a GPU's host would wait for it."""

    def __init__(self):
        super().__init__()
        self.called = set()  # names of operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        self.called.add(name)
        result = func(*args, **kwargs)
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        if any(tensor.is_meta for tensor in tensors + made):
            assert name not in SIZED_BY_VALUES, name
            assert name != "repeat_interleave" or kwargs.get("output_size") is not None, "repeat_interleave without output_size"
            copies = name in ("_to_copy", "copy_", "lift_fresh")  # a single number of the host is a kernel's argument, unless it is copied
            assert all(tensor.is_meta or not (copies or tensor.ndim) for tensor in tensors), f"{name} of a tensor of the host"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [index for index in args[1] if index is not None and index.is_meta and index.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{name} by a mask"
        return result


class Uncopied(TorchFunctionMode):
    """The same for `torch.tensor(numbers, device=...)` and `tensor[[0, 1]]`, whose copies lie below the other mode; and tensors without
    values say that they are on a GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == torch.Tensor.is_cuda.__get__:
            return args[0].is_meta
        copies = func in (torch.tensor, torch.as_tensor) and torch.device((kwargs or {}).get("device") or "cpu").type != "cpu"
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and args[0].is_meta:
            copies = any(isinstance(index, list) for index in (args[1] if isinstance(args[1], tuple) else args[1:2]))
        assert not copies, "numbers of the host as a tensor"
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def recent(monkeypatch):
    """A GPU that multiplies bf16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def step_without_waiting(objective, batches) -> set[str]:
    """A whole step and its clipping, on tensors without values; the operations that were called."""
    objective.to("meta")
    objective.encoder.compute_dtype = torch.bfloat16
    batches = [batch.to("meta") for batch in batches]
    with Unasked() as mode, Uncopied():
        backward(objective, batches, META)
        clip_gradients(objective, OptimConfig())
        objective.updated()
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in objective.parameters())
    return mode.called


@pytest.mark.parametrize(("name", "layout"), TABLE, ids=[f"{n}-{la.split('-')[0]}" for n, la in TABLE])
@pytest.mark.parametrize("micro_tokens", [10**9, 400], ids=["whole", "split"])
def test_a_step_reads_nothing_from_the_device(name, layout, micro_tokens):
    objective = make_objective(name, layout, dropout=0.0 if layout.startswith("convert") else 0.1)
    batches = one_step(objective, batch_size=8, micro_tokens=micro_tokens)
    assert (len(batches) == 1) == (micro_tokens > 400)
    step_without_waiting(objective, batches)


@pytest.mark.parametrize("name", ["mlm", "electra", "condenser", "contrastive", "rerank", "classify"])
def test_attention_without_a_bias_pads_nothing(name):
    """In the flash kernel, forward and backward."""
    objective = make_objective(name)
    called = step_without_waiting(objective, one_step(objective, batch_size=8))
    assert {"torch_attn::_varlen_attn", "torch_attn::_varlen_attn_backward"} <= called
    assert not [operation for operation in called if "dot_product" in operation or operation == "_softmax"]


def scored(pairs):
    count = len(pairs.passages) // len(pairs.queries)
    draw = torch.Generator().manual_seed(0)
    guide = tuple(torch.randn(len(side), 4, generator=draw) for side in (pairs.queries, pairs.passages))
    return replace(pairs, scores=torch.randn(len(pairs.queries), count, generator=draw), guide=guide)


def several_targets(examples):
    return replace(examples, targets=torch.nn.functional.one_hot(examples.targets.long(), 3).float())


CHOICES = {  # what else the settings make of a step: (objective, settings, what is done to the examples)
    "mpnet-mlm": ("mpnet", {"add_mlm": True}, None),
    "electra-later": ("electra", {"disc_start_step": 1, "segments": True}, None),
    "retromae-full": ("retromae", {"query": "full"}, None),
    "dupmae-counts": ("dupmae", {"bag": "counts"}, None),
    "seq2seq-vector": ("seq2seq", {"bottleneck": "vector", "pooling": "mean"}, None),
    "marge-heads": ("marge", table.CONFIGS["marge"] | {"beta": "head", "distill_attention": 1.0}, None),
    "contrastive-taught": ("contrastive", {"distill": "kl", "margin": 0.1, "symmetric": True, "untied": True, "dimensions": (16,)}, scored),
    "contrastive-group": ("contrastive", {"distill": "margin_mse", "normalize": False, "negatives": "group"}, scored),
    "dual-triplet": ("dual", {"loss": "triplet"}, None),
    "dual-annealed": ("dual", {"loss": "symmetric", "scale": "annealed", "reduction": "max"}, None),
    "convert-quantized": ("convert", {"quantize": "all", "context_ff": "separate", "dropout": 0.1}, None),
    "rerank-kl": ("rerank", {"loss": "kl"}, scored),
    "rerank-margins": ("rerank", {"loss": "margin_mse"}, scored),
    "rerank-listwise": ("rerank", {}, None),
    "classify-labels": ("classify", {"task": "labels", "labels": ("a", "b", "c"), "head": "mean"}, several_targets),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_nor_does_a_step_with_other_settings(choice, monkeypatch):
    name, config, change = CHOICES[choice]
    monkeypatch.setitem(table.CONFIGS, name, config)
    objective = make_objective(name)
    if change is scored:
        objective.reads = "groups"
    collate = objective.collate if change is None else lambda examples: objective.collate(change(examples))
    batches = Batches(make_source(objective), collate, 8, 400, seed=5).step(0)
    assert len(batches) > 1
    step_without_waiting(objective, batches)


@pytest.mark.parametrize("waits", [
    lambda x: x.tolist(),
    lambda x: float(x[0]),
    lambda x: bool((x > 0).any()),
    lambda x: x.cpu(),
    lambda x: x.nonzero(),
    lambda x: x[x > 0],
    lambda x: x.index_put_((x > 0,), x),
    lambda x: x.masked_select(x > 0),
    lambda x: x.unique(),
    lambda x: torch.isin(x, x),
    lambda x: x.repeat_interleave(x.long()),
    lambda x: torch.nn.functional.one_hot(x.long()),
    lambda x: x + torch.ones(3),
    lambda x: x[torch.tensor([0, 1])],
    lambda x: x[[0, 1]],
    lambda x: torch.ones(3).to(x.device, non_blocking=True),
    lambda x: torch.tensor(1.0).to(x.device),
    lambda x: torch.tensor([1, 2], device=x.device),
    lambda x: x.copy_(torch.ones(3)),
], ids=range(19))
def test_what_waits_is_refused(waits):
    with pytest.raises((AssertionError, NotImplementedError, RuntimeError)), Unasked(), Uncopied():
        waits(torch.ones(3, device="meta"))


@pytest.mark.parametrize("name", table.EVERY)
def test_every_tensor_of_a_batch_travels_without_waiting(name):
    """`pinned` and `to` change every tensor, by one walk; nothing is copied where nothing has to move."""
    (batch,) = one_step(make_objective(name), batch_size=4)
    found, copied = [], []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            copied.append((func._schema.name, (kwargs or {}).get("non_blocking")))
            return func(*args, **(kwargs or {}))

    with Copies():
        assert batch.to("cpu") is batch
        assert not copied
        moved = batch.to("meta")
    with_tensors(moved, lambda tensor: found.append(tensor) or tensor)
    assert copied == [("aten::_to_copy", True)] * len(found)
    assert all(tensor.is_meta for tensor in found)
    assert np.sum([tensor.numel() for tensor in found]) > batch.tokens
