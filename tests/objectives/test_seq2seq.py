"""seq2seq: what the decoder may see, the noises as the objective uses them, pairs, generation, BART in transformers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

from foretext.errors import UserError
from foretext.model.bart import load_bart
from foretext.model.encoder import Encoder, Tokens
from foretext.model.generation import GenerationConfig
from foretext.model.layout import Layout
from foretext.model.presets import preset
from foretext.objectives.seq2seq import Seq2Seq
from foretext.text.pairs import NOTHING_KNOWN, Pairs
from foretext.text.tokenizer import Tokenizer
from foretext.verbs.pretrain import EncoderChoice, PretrainConfig, sources, start_encoder
from tests.conftest import made_up_texts
from tests.random_tokens import CLS, MASK, SEP, alphabet, random_documents, tiny_encoder

LAYOUTS = ("bert", "mpnet", "modernbert")
LENGTHS = [20, 12, 7, 1]
CLOSE = {"rtol": 0, "atol": 1e-5}


def objective(layout: str = "bert", seed: int = 0, **options) -> Seq2Seq:
    """Tiny, in eval mode, with perturbed weights."""
    tokenizer = alphabet(40)
    made = Seq2Seq(tiny_encoder(tokenizer, layout), tokenizer, Seq2Seq.Config(**{"decoder_layers": 2} | options)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def pairs_of(tokenizer, queries: list[int], passages: list[int]) -> Pairs:
    return Pairs(random_documents(tokenizer, queries), random_documents(tokenizer, passages, seed=1), NOTHING_KNOWN)


def texts(tokens: Tokens, ids: torch.Tensor | None = None) -> list[list[int]]:
    return [part.tolist() for part in (tokens.ids if ids is None else ids).split(list(tokens.layout.lengths))]


def logits(model: Seq2Seq, batch) -> torch.Tensor:
    memory = model.memory(batch.source, batch.target.layout)
    return model.output(model.decoder(model.encoder, batch.target, memory), model.encoder.words)


# ---------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("noise", ["infill", "delete"])
def test_the_target_is_the_clean_text(noise):
    model = objective(noise=noise)
    documents = random_documents(model.tokenizer, LENGTHS)
    batch = model.collate(documents)
    clean = {tuple(text.tolist()) for text in documents.ids.split(LENGTHS)}
    read, labels = texts(batch.target), texts(batch.target, batch.labels)
    assert all(row[0] == CLS for row in read)
    assert {tuple(row[:-1]) for row in labels} == clean
    assert all(row[-1] == SEP and row[:-1] == before[1:] for row, before in zip(labels, read))
    assert batch.counts == {"seq2seq": sum(LENGTHS) + len(LENGTHS)}
    assert all(row[0] == CLS and row[-1] == SEP for row in texts(batch.source))


@pytest.mark.parametrize("noise", ["infill", "delete"])
def test_at_rate_nothing_the_source_is_the_text(noise):
    model = objective(noise=noise, share=0.0)
    batch = model.collate(random_documents(model.tokenizer, LENGTHS))
    assert [row[1:-1] for row in texts(batch.source)] == [row[1:] for row in texts(batch.target)]


def test_infill_and_delete_take_their_shares():
    documents = random_documents(alphabet(40), [20] * 200)
    sources = texts(objective(noise="infill").collate(documents).source)
    assert {len(row) - 2 - row.count(MASK) for row in sources} == {14}  # half_even(.3 * 20) tokens are hidden
    sources = texts(objective(noise="delete").collate(documents).source)
    assert np.mean([len(row) - 2 for row in sources]) == pytest.approx(8, abs=0.5)


def test_long_texts_and_targets_keep_their_ends():
    """Sources of pairs keep their last tokens and the begin token, targets their first and the end token."""
    model = objective(noise="none", max_len=10)
    pairs = pairs_of(model.tokenizer, [30], [25])
    batch = model.collate(pairs)
    assert batch.source.ids.tolist() == [CLS, *pairs.queries.ids[-8:].tolist(), SEP]
    assert batch.target.ids.tolist() == [CLS, *pairs.passages.ids[:8].tolist()]
    assert batch.labels.tolist() == [*pairs.passages.ids[:8].tolist(), SEP]


def test_pairs_stay_together_when_sorted():
    model = objective(noise="none")
    queries, passages = [3, 9, 5, 12], [4, 2, 11, 6]
    pairs = pairs_of(model.tokenizer, queries, passages)
    batch = model.collate(pairs)
    found = {tuple(source[1:-1]): tuple(target[1:]) for source, target in zip(texts(batch.source), texts(batch.target))}
    assert found == {tuple(q.tolist()): tuple(p.tolist()) for q, p in
                     zip(pairs.queries.ids.split(queries), pairs.passages.ids.split(passages))}


def t5_tokenizer() -> Tokenizer:
    import tokenizers

    words = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[unused{i}]" for i in range(4)),
                                                 *"abcdefghijklmnopqrstuvwxyz"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Tokenizer(backend, {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"})


def test_spans_ask_for_the_spans():
    tokenizer = t5_tokenizer()
    model = Seq2Seq(tiny_encoder(tokenizer), tokenizer, Seq2Seq.Config(noise="spans", decoder_layers=1))
    documents = random_documents(alphabet(26), [20], seed=3)
    batch = model.collate(replace(documents, ids=documents.ids + 4))  # letters alone
    assert [id for id in batch.source.ids.tolist() if 5 <= id < 9] == [5]  # half_even(.15 * 20) = 3 tokens are one span
    assert batch.target.ids.tolist()[:2] == [CLS, 5]
    assert batch.labels.tolist()[0] == 5 and batch.labels.tolist()[-1] == SEP and len(batch.labels) == 5
    with pytest.raises(UserError, match="sentinel"):
        Seq2Seq(tiny_encoder(tokenizer, max_len=200), tokenizer, Seq2Seq.Config(noise="spans"))


@pytest.mark.parametrize("options", [{"noise": "none", "share": 0.2}, {"noise": "infill", "share": 0.7}, {"noise": "delete", "span": 2.0},
                                     {"noise": "delete", "shuffle_sentences": True}])
def test_settings_without_effect_are_refused(options):
    with pytest.raises(ValidationError):
        Seq2Seq.Config(**options)


# ---------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bottleneck", ["none", "vector"])
def test_logits_depend_on_earlier_target_tokens_only(layout, bottleneck):
    model = objective(layout, bottleneck=bottleneck)
    batch = model.collate(random_documents(model.tokenizer, LENGTHS))
    memory = model.memory(batch.source, batch.target.layout)
    run = lambda target: model.decoder(model.encoder, target, memory)  # noqa: E731
    before = run(batch.target)
    place = 6
    changed = batch.target.ids.clone()
    changed[place] = 5 + (changed[place] - 4) % 40
    moved = (run(batch.target.with_ids(changed)) - before).abs().amax(1) > 1e-6
    same = batch.target.layout.sequence == batch.target.layout.sequence[place]
    assert torch.equal(moved, same & (torch.arange(len(moved)) >= place))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bottleneck", ["none", "vector"])
def test_source_padding_has_no_effect(layout, bottleneck):
    """Sources of one bucket, padded to the longest, and each alone."""
    model = objective(layout, bottleneck=bottleneck)
    documents = random_documents(model.tokenizer, LENGTHS)
    batch = model.collate(documents)
    assert len(batch.source.layout.buckets) == 1 and batch.source.layout.buckets[0].real is not None
    together = logits(model, batch)
    alone = [logits(model, model.collate(documents.select(torch.tensor([i])))) for i in range(len(LENGTHS))]
    order = batch.documents.tolist()
    torch.testing.assert_close(together, torch.cat([alone[i] for i in order]), **CLOSE)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_with_a_bottleneck_only_the_vector_counts(pooling):
    """Two sources with equal vectors give equal logits, whatever their tokens and lengths."""
    model = objective(bottleneck="vector", pooling=pooling)
    batch = model.collate(random_documents(model.tokenizer, [10]))
    memories = [model.memory(Tokens.of(torch.randint(5, 40, (n,)), [n]), batch.target.layout) for n in (5, 17)]
    assert all(memory.states.shape == (1, 32) for memory in memories)
    out = [model.decoder(model.encoder, batch.target, memory) for memory in memories]
    assert not torch.allclose(*out)
    same = [model.decoder(model.encoder, batch.target, replace(memory, states=memories[0].states)) for memory in memories]
    assert torch.equal(*same)


def test_a_vector_bottleneck_reads_the_vector_that_is_exported():
    from foretext.model.heads import pool

    for pooling in ("cls", "mean"):
        model = objective(bottleneck="vector", pooling=pooling)
        source = model.collate(random_documents(model.tokenizer, LENGTHS)).source
        memory = model.memory(source, Layout.of([1] * 4, source.layout.splits))
        torch.testing.assert_close(memory.states, pool(model.encoder(source), source.layout, model.pooling), **CLOSE)


def test_tied_decoders_share_all_but_cross_attention():
    model = objective(tie=True, bottleneck="vector", decoder_layers=None)
    assert len(model.decoder.blocks) == 2
    assert model.decoder.blocks[1].qkv is model.encoder.blocks[1].qkv
    assert {name.split(".")[3] for name in model.heads() if name.startswith("decoder")} == {"cross"}
    with pytest.raises(UserError, match="layer by layer"):
        objective(tie=True, decoder_layers=3)


def test_perplexity_is_of_the_mean():
    model = objective()
    assert model.summary({"seq2seq": 2.0}) == {"perplexity": pytest.approx(math.e**2)}


# ------------------------------------------------------------------------------------------------------------- generation


def learnt(noise: str = "delete", steps: int = 100, **options) -> tuple[Seq2Seq, list[torch.Tensor]]:
    """A model that has learnt four texts by heart, and what it was shown of them."""
    model = objective(noise=noise, share=0.3, **options)
    lengths = [14, 12, 9, 6]
    documents = random_documents(model.tokenizer, lengths)
    batch = model.collate(documents)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(batch).terms["seq2seq"] / batch.counts["seq2seq"]).backward()
        optimizer.step()
    return model, batch


def test_writes_what_it_has_learnt():
    model, batch = learnt()
    sources = [torch.tensor(row[1:-1]) for row in texts(batch.source)]
    wanted = [row[1:] for row in texts(batch.target)]
    mixed = [2, 0, 3, 1]  # any order of sources
    for options in ({}, {"beams": 3}, {"temperature": 0.05, "top_k": 3}):
        made = model.generate([sources[i] for i in mixed], GenerationConfig(**options))
        assert [row.tolist() for row in made] == [wanted[i] for i in mixed], options
    assert [len(row) for row in model.generate(sources, GenerationConfig(longest=3))] == [3] * 4
    assert not model.training


def test_generation_ends_at_the_longest_text():
    model = objective()
    model.output.bias.data[SEP] = -100.0
    made = model.generate([torch.tensor([5, 6]), torch.full((100,), 7)], GenerationConfig(longest=1000))
    assert [len(row) for row in made] == [model.max_len - 1] * 2
    assert all((row >= 5).all() for row in made)


# ------------------------------------------------------------------------------------------------------------------- BART


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train(made_up_texts(200, seed=7), kind="bpe", vocab_size=512)


def bart(words: Tokenizer, **options) -> Seq2Seq:
    torch.manual_seed(0)
    encoder = Encoder(preset("bart-tiny", words.size, max_len=48))
    model = Seq2Seq(encoder, words, Seq2Seq.Config(decoder_layers=3, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def test_agrees_with_transformers_and_reloads(words, tmp_path):
    model = bart(words)
    (folder,) = model.save_networks(tmp_path)
    theirs, info = transformers.BartForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    theirs.eval()
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = model.collate(random_documents_of(words, [20, 11, 3]))
    ours = logits(model, batch)
    pad = torch.nn.utils.rnn.pad_sequence
    source = pad([torch.tensor(row) for row in texts(batch.source)], batch_first=True, padding_value=words.pad_id)
    target = pad([torch.tensor(row) for row in texts(batch.target)], batch_first=True, padding_value=words.pad_id)
    real = pad([torch.ones(n) for n in batch.source.layout.lengths], batch_first=True)
    with torch.no_grad():
        found = theirs(input_ids=source, attention_mask=real, decoder_input_ids=target).logits
    flat = torch.cat([row[:n] for row, n in zip(found, batch.target.layout.lengths)])
    torch.testing.assert_close(flat, ours, rtol=1e-5, atol=1e-5)

    encoder, decoder, output = load_bart(folder)
    again = bart(words)
    again.encoder, again.decoder, again.output = encoder.eval(), decoder.eval(), output
    torch.testing.assert_close(logits(again, batch), ours, **CLOSE)
    assert transformers.AutoTokenizer.from_pretrained(folder)("a text")["input_ids"][0] == words.cls_id


def random_documents_of(words: Tokenizer, lengths: list[int]):
    return random_documents(type("Size", (), {"size": words.size}), lengths)


@pytest.mark.parametrize("options", [{}, {"beams": 3}, {"beams": 4, "length_penalty": 0.5}])
def test_generates_what_transformers_generates(words, tmp_path, options):
    model = bart(words)
    theirs = transformers.BartForConditionalGeneration.from_pretrained(model.save_networks(tmp_path)[0]).eval()
    never = [id for id in np.flatnonzero(words.special).tolist() if id != words.sep_id]
    for source in random_documents_of(words, [20, 11, 3]).ids.split([20, 11, 3]):
        (ours,) = model.generate([source], GenerationConfig(longest=12, **options))
        framed = torch.tensor([[words.cls_id, *source.tolist(), words.sep_id]])
        with torch.no_grad():
            found = theirs.generate(framed, max_new_tokens=12, num_beams=options.get("beams", 1), do_sample=False, suppress_tokens=never,
                                    length_penalty=options.get("length_penalty", 1.0), early_stopping=False)[0, 1:]
        assert [id for id in found.tolist() if id not in (words.sep_id, words.pad_id)] == ours.tolist()


def test_a_bart_with_embeddings_of_its_own_is_refused(words, tmp_path):
    from safetensors.torch import load_file, save_file

    (folder,) = bart(words).save_networks(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.decoder.embed_positions.weight"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="embeddings of its own"):
        load_bart(folder)


def test_other_layouts_and_bottlenecks_are_no_bart(words, tmp_path):
    assert objective("bert").save_networks(tmp_path) == []
    assert bart(words, bottleneck="vector").save_networks(tmp_path) == []


def test_recipes_are_of_encoders_that_exist(words):
    for name, recipe in Seq2Seq.recipes.items():
        Seq2Seq.Config(**recipe["objective"])
        config = preset(name, 100)
        assert config.layers == recipe["objective"]["decoder_layers"]
    assert start_encoder(EncoderChoice(start="bart-tiny"), words, 32)[0].config.family == "roberta"


def test_pairs_go_with_noise_none_alone():
    config = PretrainConfig(store="", output="", objective={"name": "seq2seq"}, pairs={"kind": "halves"})
    with pytest.raises(UserError, match="noise infill: set objective.noise=none"):
        sources(config, None, objective())
