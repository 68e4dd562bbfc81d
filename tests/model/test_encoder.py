"""What holds for every encoder: batch mates do not matter, pruning is exact, gradients are those of the padded model."""

import copy

import pytest
import torch
import transformers
from torch import nn

from foretext.errors import UserError
from foretext.model.encoder import Encoder, EncoderConfig, Tokens
from foretext.model.huggingface import NAMES, load_encoder, parameter_names
from foretext.model.layers import Linear, relative_bucket
from foretext.model.lora import add_lora, merge_lora
from foretext.model.presets import FAMILIES, preset
from foretext.training.optim import OptimConfig, make_optimizer

V = 101
LENGTHS = [40, 33, 33, 9, 4, 1]


def encoder(family: str, **changes) -> Encoder:
    torch.manual_seed(0)
    window = {"window": 6} if family == "modernbert" else {}
    model = Encoder(preset(f"{family}-tiny", V, width=32, layers=4, max_len=64, **(window | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tokens(lengths=LENGTHS) -> Tokens:
    return Tokens.of(torch.randint(V, (sum(lengths),), generator=torch.Generator().manual_seed(1)), lengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_does_not_depend_on_its_batch(family):
    model, batch = encoder(family), tokens()
    together = model(batch).split(LENGTHS)
    for one, ids in zip(together, batch.ids.split(LENGTHS)):
        alone = model(Tokens.of(ids, [len(ids)]))
        assert (alone - one).abs().max() <= 2e-5
    order = [3, 0, 5, 1, 4, 2]
    shuffled = Tokens.of(torch.cat([batch.ids.split(LENGTHS)[b] for b in order]), [LENGTHS[b] for b in order])
    for b, one in zip(order, model(shuffled).split([LENGTHS[b] for b in order])):
        assert (one - together[b]).abs().max() <= 2e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_is_exact(family):
    model, batch = encoder(family), tokens()
    rows = torch.tensor([0, 5, 39, 41, 119, 118])
    full, some = model(batch), model(batch, rows)
    assert some.shape == (6, 32) and (some - full[rows]).abs().max() <= 2e-6
    weights = torch.randn(6, 32)
    (full[rows] * weights).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    (some * weights).sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-4, rtol=1e-4), name


@pytest.mark.parametrize("family", FAMILIES)
def test_states_end_in_the_output(family):
    model, batch = encoder(family), tokens()
    states = model.states(batch)
    assert len(states) == 5
    assert torch.equal(model.final_norm(states[-1]), model(batch))
    assert torch.equal(states[0], model.embed(batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_visible_keys(family):
    """A bias that shows everything is no bias; and hiding the tail equals not having it."""
    model, batch = encoder(family), tokens()

    def run(visible):
        x, biases, rotaries = model.embed(batch), model.biases(batch, batch, visible), model.rotaries(batch.positions)
        for i, block in enumerate(model.blocks):
            window = model.window(i) if visible is None else None
            x = block(x, batch.layout, biases[i], rotaries[i], window)
        return model.final_norm(x)

    shown = [torch.ones(bucket.size, 1, bucket.width, bucket.width, dtype=torch.bool) for bucket in batch.layout.buckets]
    assert (run(shown) - run(None)).abs().max() <= 2e-5
    for mask in shown:
        mask[..., 2:] = False
    heads = [ids[:2] for ids in batch.ids.split(LENGTHS)]
    short = model(Tokens.of(torch.cat(heads), [len(ids) for ids in heads])).split([len(ids) for ids in heads])
    for one, other in zip(run(shown).split(LENGTHS), short):
        assert (one[: len(other)] - other).abs().max() <= 2e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_block_are_the_block(family):
    """Objectives that attend across two streams call the parts themselves."""
    model, batch = encoder(family), tokens()
    x, bias = model.embed(batch), model.biases(batch, batch)[1]
    rotary, block = model.rotaries(batch.positions)[1], model.blocks[1]
    entered = block.enter(x)
    q, (k, v) = block.queries(entered), block.keys_values(entered)
    if rotary is not None:
        q, k = rotary(q), rotary(k)
    apart = block.finish(x, block.mix(q, k, v, batch.layout, bias=bias, window=model.window(1)))
    assert (apart - block(x, batch.layout, bias, rotary, model.window(1))).abs().max() <= 1e-5


def test_relative_bucket():
    apart = torch.tensor([0, 1, -1, 7, -8, 11, 12, -64, 90, 91, -500])
    assert relative_bucket(apart).tolist() == [0, 17, 1, 23, 8, 24, 25, 14, 30, 31, 15]


def test_relative_bucket_is_that_of_transformers():
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    apart = torch.arange(-600, 601)
    assert torch.equal(relative_bucket(apart), MPNetEncoder.relative_position_bucket(apart))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_gradients_are_those_of_the_padded_model(family, tmp_path):
    shape = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
             "pad_token_id": 0, "max_position_embeddings": 64}  # fmt: skip
    if family == "bert":
        config = transformers.BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    else:
        config = transformers.ModernBertConfig(**shape, local_attention=12, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
    torch.manual_seed(0)
    reference = transformers.AutoModel.from_config(config).train()
    reference.save_pretrained(tmp_path)
    model = load_encoder(tmp_path).train()

    batch = tokens()
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long).masked_scatter(mask, batch.ids)
    weights = torch.randn(sum(LENGTHS), 32)
    (model(batch) * weights).sum().backward()
    (reference(ids, attention_mask=mask.long()).last_hidden_state[mask] * weights).sum().backward()

    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for ours, names in parameter_names(model, NAMES[family].modules).items():
        expected = torch.cat([theirs.pop(name) for name in names])
        found = model.get_parameter(ours).grad
        assert (found - expected).norm() <= 1e-5 * max(1.0, expected.norm()), ours
    assert all("pooler" in name for name in theirs)


def test_bf16_activations_over_fp32_weights():
    model = encoder("bert")
    model.compute_dtype = torch.bfloat16
    hidden = model(tokens())
    hidden.float().sum().backward()
    assert hidden.dtype == torch.bfloat16
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_inference_in_a_dtype_that_has_no_fused_product(dtype):
    linear, x = Linear(8, 4), torch.randn(3, 8, dtype=dtype)
    with torch.inference_mode():
        product = torch.nn.functional.linear(x, linear.weight.to(dtype), linear.bias.to(dtype))
        assert torch.equal(linear(x, then="gelu"), torch.nn.functional.gelu(product))


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_inference_mode_changes_nothing_but_rounding(family, adapters):
    model, batch = encoder(family), tokens()
    if adapters:
        add_lora(model, rank=4, alpha=8)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    exact = model(batch).detach()
    with torch.inference_mode():
        torch.testing.assert_close(model(batch), exact, rtol=1e-5, atol=1e-5)
    model.compute_dtype = torch.bfloat16
    with torch.inference_mode():
        fused = model(batch).float()
    usual = model(batch).detach().float()
    assert (fused - exact).norm() <= 1.2 * (usual - exact).norm()
    assert torch.cosine_similarity(fused, exact).min() > 0.999


def frozen(model):
    """`model` with its linear weights cast to bf16 once, and what it then says without gradients."""
    model.compute_dtype = torch.bfloat16
    for module in model.modules():
        if isinstance(module, Linear):
            module.freeze(torch.bfloat16)

    def states(model=model):
        with torch.inference_mode():
            return model(tokens())

    return states


def fresh(model):
    """What the same weights say in a network that never kept a cast."""
    other = encoder("bert")
    other.load_state_dict(model.state_dict())
    other.compute_dtype = torch.bfloat16
    with torch.inference_mode():
        return other(tokens())


def test_frozen_weights_say_the_same():
    model = encoder("bert")
    before = fresh(model)
    states = frozen(model)
    assert all(module.frozen for module in model.modules() if isinstance(module, Linear))
    assert torch.equal(states(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_are_read_in_any_way(dtype):
    """One token or many, a copy of the model, and outside inference mode, where the order of oneDNN cannot be used."""
    torch.manual_seed(0)
    plain, frozen = Linear(48, 96), Linear(48, 96)
    frozen.load_state_dict(plain.state_dict())
    frozen.freeze(dtype)
    copied = copy.deepcopy(frozen)
    for tokens in (1, 7, 300):
        x = torch.randn(tokens, 48).to(dtype)
        with torch.inference_mode():
            expected = plain(x)
            torch.testing.assert_close(frozen(x), expected)
            torch.testing.assert_close(copied(x), expected)
        usual = plain(x).detach()
        assert torch.equal(frozen(x), usual) and torch.equal(copied(x), usual)
    with torch.no_grad():
        for part in (plain, frozen):
            part.bias += 1
    with torch.inference_mode():
        torch.testing.assert_close(frozen(x), plain(x))


def trained(model):
    model.requires_grad_(True)
    optimizer = make_optimizer(model, OptimConfig(lr=0.1))  # fused, which leaves the version of a tensor as it was
    model(tokens()).float().square().sum().backward()
    optimizer.step()
    return model


def doubled(model):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Linear):
                module.weight.mul_(2)
    return model


def merged(model):
    add_lora(model, rank=2, alpha=4.0)
    for name, x in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(x)
    return merge_lora(model)


def reloaded(model):
    state = {name: x + 0.5 for name, x in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


@pytest.mark.parametrize("change", [trained, doubled, merged, reloaded])
def test_frozen_weights_are_never_old(change):
    model = encoder("bert")
    states = frozen(model)
    before = states()
    model = change(model)
    assert not torch.equal(states(model), before)
    assert torch.equal(states(model), fresh(model))


def test_weights_of_inference_mode_can_be_frozen():
    with torch.inference_mode():
        model = encoder("bert")
        states = frozen(model)
    assert torch.equal(states(), fresh(model))


def test_token_types_change_the_output():
    model, batch = encoder("bert"), tokens()
    typed = Tokens.of(batch.ids, LENGTHS, types=torch.ones_like(batch.ids))
    assert not torch.allclose(model(typed), model(batch))
    zero = Tokens.of(batch.ids, LENGTHS, types=torch.zeros_like(batch.ids))
    assert torch.equal(model(zero), model(batch))


def test_presets_and_configs_say_what_is_wrong():
    with pytest.raises(UserError, match="albert-base"):
        preset("albert-base", V)
    with pytest.raises(ValueError, match="not a multiple"):
        EncoderConfig(vocab_size=V, width=30, heads=4)
