"""Optimisers and schedules: worked numbers, groups, and what a resumed run continues."""

import pytest
import torch
from pydantic import ValidationError

from foretext.training.optim import OptimConfig, layer_share, learning_rate, make_optimizer, set_rate
from tests.objectives.table import make_objective


def rates(total: int, **settings) -> list[float]:
    config = OptimConfig(**{"lr": 1.0} | settings)
    return [learning_rate(config, u, total) for u in range(total)]


def test_schedules_of_the_definitions():
    linear = rates(12, warmup=4)
    assert [linear[u] for u in (0, 1, 2, 3, 4, 8, 11)] == [0.25, 0.5, 0.75, 1, 1, 0.5, 0.125]
    assert rates(20, warmup=4, schedule="inverse_sqrt")[15] == 0.5
    assert rates(100, warmup=0, schedule="cosine", end_lr=0.001)[50] == pytest.approx(0.5005)
    assert rates(10, warmup=0, schedule="poly", power=2.0)[5] == pytest.approx(0.25)


def test_product_of_warmup_and_decay():
    """p (1 - u/T) min(1, (u+1)/w), as ELECTRA's code."""
    found = rates(12, warmup=4, compose="product")
    assert found == pytest.approx([(1 - u / 12) * min(1, (u + 1) / 4) for u in range(12)])
    assert rates(10, warmup=0, compose="product", schedule="poly", power=2.0, end_lr=0.2)[5] == pytest.approx(0.8 * 0.25 + 0.2)
    with pytest.raises(ValidationError, match="use linear or poly"):
        OptimConfig(compose="product", schedule="cosine")


def moved(grads: list[float], **settings) -> list[float]:
    """Where a weight matrix of one 1 goes under these gradients, with the rate .1."""
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(module.weight)
    optimizer = make_optimizer(module, OptimConfig(lr=0.1, weight_decay=0.01, eps=1e-6, **settings))
    found = []
    for grad in grads:
        set_rate(optimizer, 0.1)
        module.weight.grad = torch.full_like(module.weight, grad)
        optimizer.step()
        found.append(module.weight.item())
    return found


def test_first_step_of_adamw():
    assert moved([1.0])[0] == pytest.approx(0.8990001, abs=2e-7)
    assert moved([1.0], bias_correction=False)[0] == pytest.approx(0.6827822, abs=2e-7)


def test_adamw_without_bias_correction_by_hand():
    theta, m, v, expected = 1.0, 0.0, 0.0, []
    grads = [1.0, -0.5, 0.25, 2.0, 0.0, 1e-4]
    for g in grads:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta -= 0.1 * (m / (v**0.5 + 1e-6) + 0.01 * theta)
        expected.append(theta)
    assert moved(grads, bias_correction=False) == pytest.approx(expected, abs=1e-6)


def test_adamw_without_bias_correction_goes_on_from_its_state():
    torch.manual_seed(0)
    grads, config = torch.randn(6, 4, 3), OptimConfig(bias_correction=False)

    def run(module, optimizer, steps):
        for grad in grads[steps]:
            module.weight.grad = grad.clone()
            optimizer.step()

    whole, first = torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(3, 4, bias=False)
    first.load_state_dict(whole.state_dict())
    run(whole, make_optimizer(whole, config), slice(0, 6))
    before = make_optimizer(first, config)
    run(first, before, slice(0, 3))
    second = torch.nn.Linear(3, 4, bias=False)
    second.load_state_dict(first.state_dict())
    after = make_optimizer(second, config)
    after.load_state_dict(before.state_dict())
    run(second, after, slice(3, 6))
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.parametrize(("form", "last", "bottom"), [("intended", 0.8, 0.8**13), ("published", 0.64, 0.8**14)])
def test_rates_by_layer(form, last, bottom):
    config = OptimConfig(layer_decay=0.8, layer_decay_form=form)
    assert layer_share("encoder.blocks.11.up.weight", 12, config) == pytest.approx(last)
    assert layer_share("encoder.blocks.0.qkv.bias", 12, config) == pytest.approx(last * 0.8**11)
    for name in ("words.weight", "positions.weight", "types.weight", "norm.bias", "project.weight", "relative.weight"):
        assert layer_share(f"encoder.{name}", 12, config) == pytest.approx(bottom)
    assert layer_share("head.dense.weight", 12, config) == layer_share("encoder.final_norm.weight", 12, config) == 1
    with pytest.raises(ValueError, match="encoder.adapter.weight belongs to no layer"):
        layer_share("encoder.adapter.weight", 12, config)


@pytest.mark.parametrize("layout", ["bert-tiny", "mpnet-tiny", "modernbert-tiny"])
@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_every_parameter_is_in_one_group(layout, decay):
    objective = make_objective("electra", layout)  # its generator shares tensors with the encoder
    optimizer = make_optimizer(objective, OptimConfig(lr=1.0, layer_decay=decay))
    inside = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(inside) == len(set(inside)) == len(list(objective.parameters()))
    set_rate(optimizer, 2.0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[id(objective.encoder.words.weight)] == pytest.approx(2 * decay ** (len(objective.encoder.blocks) + 1))
    assert rate[id(objective.generator.blocks[0].qkv.weight)] == 2
    assert len(optimizer.param_groups) == (2 if decay == 1 else 2 * (len(objective.encoder.blocks) + 2))


def test_settings_without_effect_are_refused():
    with pytest.raises(ValidationError, match="set layer_decay"):
        OptimConfig(layer_decay_form="published")
