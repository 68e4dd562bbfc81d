"""MARGE: a text must be rebuilt from other texts, which the model finds itself.

What it optimises: a decoder writes each target text while it reads evidence texts that the encoder's own vectors say are near. How near
    is a cosine of the two vectors, added to the decoder's attention over that evidence; so rebuilding the target trains the vectors.
References: MARGE (arXiv 2006.15020), section 2.1 relevance and equation 4, 2.2 reconstruction, 2.3 batching, 3 architecture;
    `distill_attention`: Izacard and Grave (arXiv 2012.04584), section 3.
Inputs: documents of a store; who is evidence for whom is found anew every `refresh_every` steps. An example is a cluster: a few
    targets and the evidence that they share.
Owns: the encoder's upper layers for evidence, the decoder, the bias of its output, the scale of relevance.
Exports: the document encoder - the first `document_layers` layers and the embeddings - with cls pooling; all the rest is in
    `heads.safetensors`.
When to use it: corpora where documents retell each other (translations, news, versions of a text), when vectors of whole documents are
    wanted. On a corpus without such documents there is nothing to find.
Relations: with `relevance: detached` the vectors learn nothing from reconstruction (the paper's ablation). `seq2seq` is the same decoder
    with one given source for each target.
Example, in anybody's loop:

    marge = MARGE(encoder, tokenizer)
    rounds = Rounds(marge, marge.source(store))        # training.refresh; evidence is found with the weights as they are
    for batch in rounds:                               # and rounds.refresh() when you like
        loss = marge(batch).terms["reconstruction"] / batch.counts["reconstruction"]

    C clusters   Nt targets   M evidence texts   T target tokens   S evidence tokens   D width   L layers with cross-attention
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from foretext.errors import UserError
from foretext.model.attention import Bias, make_bias
from foretext.model.decoder import Decoder, Hypotheses, Memory
from foretext.model.encoder import Encoder, Tokens
from foretext.model.generation import GenerationConfig, generate
from foretext.model.heads import TiedHead
from foretext.model.layout import Bucket, Layout
from foretext.objectives.base import Batch, Corpus, Objective, ObjectiveConfig, Step, flat, longest_first
from foretext.objectives.show import Note, Row, Shown, Token
from foretext.text.batches import Documents, StoreSource, spans
from foretext.text.clusters import ClusterSource, Related, Rows, Texts, by_document, chosen, rows_of_clusters, texts_of
from foretext.text.evidence import Clusters, Links, Side, best_pairs, key_numbers, make_clusters, may_link, nearest_pairs, one_cluster_each
from foretext.text.pairs import PairChoice
from foretext.text.randomness import example_keys, permutation, uniform
from foretext.text.store import Store

SHARD = 20_000  # texts of a shard where nothing says otherwise: 400 million scores, seconds on a CPU


@dataclass(frozen=True)
class MargeBatch(Batch):
    evidence: Tokens  # framed, cluster by cluster
    targets: Tokens  # framed, as the document encoder reads them, in the same order as they are written
    written: Tokens  # what the decoder reads: language or first token, then the target
    places: Tensor  # (K,) flat indices of `written` where the next token is asked for
    labels: Tensor  # (K,)
    queries: Layout  # the target tokens of each cluster
    keys: Layout  # the evidence tokens of each cluster
    hidden: Tensor  # (Nt, M) bool, True where the target must not see the evidence: itself, or another cluster's
    others: Tensor  # (Nt, M) bool, True where the evidence is another cluster's
    clusters: tuple[tuple[int, int], ...]  # how many targets and evidence texts each has


class MARGE(Objective):
    """See the head of this file."""

    name = "marge"
    reads = "clusters"
    terms = ("reconstruction",)
    pooling = "cls"
    shapes = ("document_layers", "evidence_layers", "base_layers", "decoder_layers", "decoder_ffn", "beta")

    class Config(ObjectiveConfig):
        document_layers: int | None = Field(None, gt=0, description="of the document encoder (paper: 4); default: 4, or all but one")
        evidence_layers: int | None = Field(None, gt=0, description="that evidence passes in all (paper: 12); default: all")
        base_layers: int | None = Field(None, ge=0, description="decoder layers without cross-attention (paper: 4); default: a third")
        decoder_layers: int | None = Field(None, gt=0, description="with cross-attention (paper: 12); default: as evidence_layers")
        decoder_ffn: float = Field(1.0, gt=0, description="feed-forward width of those layers, as a multiple of the encoder's (paper: 4)")
        beta: Literal["shared", "layer", "head"] = Field("shared", description="scale of relevance: one in all, of each layer, or head")
        beta_start: float = Field(1.0, description="where the scale begins")
        relevance: Literal["trained", "detached"] = Field("trained", description="detached: gives no gradient (ablation)")
        distill_attention: float = Field(0.0, ge=0, description="weight of teaching relevance what the decoder looks at; 0: off")
        refresh_every: int = Field(1000, gt=0, description="steps between searches for evidence (paper: 10,000)")
        mode: Literal["pairs", "knn"] = Field("pairs", description="pairs: the best pairs of a shard; knn: the nearest of each target")
        same_links: float = Field(4.0, ge=0, description="pairs: links within a language kept, per target on average (section 2.3)")
        cross_links: float = Field(4.0, ge=0, description="pairs: links between languages kept, per target on average")
        thresholds: Literal["two", "one"] = Field("two", description="pairs: for links within and between languages, or one for all")
        num_evidence: int = Field(4, gt=0, description="knn: evidence texts of each target")
        exclude: Literal["self", "document"] = Field("self", description="what a text never sees: itself, or its whole document")
        targets: Literal["all", "first_chunk"] = Field("all", description="which texts are rebuilt; first_chunk: a document's first (news)")
        target_store: str | None = Field(None, description="a store of texts to rebuild, if they are not the evidence themselves")
        cluster_tokens: int | None = Field(None, gt=0, description="tokens of a cluster, at most; default: four longest texts")
        shard_by: str | None = Field(None, description="regular expression: its first group in a document id is the shard; default: the id")
        shards: int | None = Field(None, gt=0, description="number of shards that keys are spread over; default: one for 20,000 texts; "
                                                           "with shard_by one for each key")
        shards_per_round: int | None = Field(None, gt=0, description="shards searched at a refresh; default: enough targets for the round")
        language_by: str | None = Field(None, description="regular expression: its first group in a document's id is the language")
        languages: tuple[str, ...] = Field((), description="all languages or sources; the decoder begins with the name's tokens")
        search: Literal["exact", "ivfpq", "hnsw"] = Field("exact", description="of a shard; the others, by FAISS, for over 100,000 texts")
        candidates: int = Field(32, gt=0, description="ivfpq, hnsw: neighbours of each target from which pairs are chosen")
        max_len: int | None = Field(None, description="longest text in tokens; default: the encoder's")

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)  # refuses encoders that it does not go with
        config = self.config
        N = config.evidence_layers or encoder.config.layers
        K = config.document_layers or max(1, min(4, N - 1))
        cross = config.decoder_layers or N
        base = max(1, cross // 3) if config.base_layers is None else config.base_layers
        if K > N:
            raise UserError(f"objective.document_layers: {K} layers cannot be the first of the encoder's {N}; take at most {N}")
        # Written into the configuration, so that an export of the document encoder knows what else belongs to it.
        config = config.model_copy(update={"evidence_layers": N, "document_layers": K, "decoder_layers": cross, "base_layers": base})
        blocks = [*encoder.blocks, *(encoder.new_block() for _ in range(N - len(encoder.blocks)))]
        self.config, self.encoder = config, with_layers(encoder, blocks[:K])
        self.evidence_encoder = with_layers(encoder, blocks[:N])
        if encoder.config.prenorm:
            self.evidence_encoder.final_norm = copy.deepcopy(encoder.final_norm)  # states and vectors lie in different layers
        self.decoder = Decoder(encoder.config, cross, base, round(config.decoder_ffn * encoder.config.ffn_width))
        self.output = TiedHead(encoder)
        L, H = (cross if config.beta != "shared" else 1), (encoder.config.heads if config.beta == "head" else 1)
        self.beta = nn.Parameter(torch.full((L * H,), config.beta_start))  # (layers * heads): a vector, so no weight decay
        self.beta_layers = L
        self.refresh_every = config.refresh_every
        if config.distill_attention:
            self.terms = ("reconstruction", "distillation")
            self.weights = {"distillation": config.distill_attention}
        names = tokenizer.encode(list(config.languages)) if config.languages else [np.array([tokenizer.cls_id])]
        self.prefixes = [torch.from_numpy(np.asarray(name, np.int64)) for name in names]
        self.cluster_tokens = config.cluster_tokens or 4 * self.max_len
        if self.cluster_tokens < 2 * self.max_len:
            raise UserError(f"objective.cluster_tokens: {self.cluster_tokens} tokens cannot hold a target and an evidence text of "
                            f"max_len {self.max_len}; take at least {2 * self.max_len}")

    # ------------------------------------------------------------------------------------------------------------ what is read

    def source(self, store: Store, part: str = "all", valid_share: float = 0.0, pairs: PairChoice | None = None) -> ClusterSource:
        """Targets of the `part`, evidence from the training part (or, with `target_store`, from the whole store)."""
        c, room = self.config, self.max_len - 2
        if c.target_store is None:
            evidence = self.texts(store, StoreSource(store, room, "train" if part == "valid" else part, valid_share))
            targets = evidence if part != "valid" else self.texts(store, StoreSource(store, room, "valid", valid_share), evidence)
        else:
            other = Store.open(c.target_store)
            if other.tokenizer.fingerprint != store.tokenizer.fingerprint:
                raise UserError(f"objective.target_store: {c.target_store} has another tokenizer than {store.path}; prepare it with "
                                f"--tokenizer {store.path / 'tokenizer'}")
            evidence = self.texts(store, StoreSource(store, room))
            targets = self.texts(other, StoreSource(other, room, part, valid_share), evidence, elsewhere=True)
        if c.targets == "first_chunk":
            first = np.diff(targets.source.documents[targets.rows], prepend=-1) != 0
            targets = chosen(targets, first)
        return ClusterSource(targets, evidence)

    def texts(self, store: Store, source: StoreSource, evidence: Texts | None = None, elsewhere: bool = False) -> Texts:
        """The rows of a source with their numbers, languages and shards; targets go to the shards of their `evidence`."""
        c = self.config
        numbers = source.documents if c.exclude == "document" else source.starts
        languages = None
        if c.language_by is not None:
            languages = by_document(source.documents, lambda d: self.language(store.document_id(d)))
        keys = self.shard_keys(store, source)
        number = c.shards or (None if c.shard_by else -(-len(source.lengths) // SHARD))
        if evidence is not None:
            number = c.shards or (None if c.shard_by else int(evidence.shards.max(initial=0)) + 1)
        shards = keys if number is None else keys % number
        if evidence is None and number is not None and len(missing := np.setdiff1d(np.arange(number), shards)):
            raise UserError(f"objective.shards: shard {missing[0] + 1} of {number} is empty, {store.path} has only {len(shards):,} texts: "
                            "take fewer shards")
        return texts_of(source, -1 - numbers if elsewhere else np.asarray(numbers), languages, shards)

    def shard_keys(self, store: Store, source: StoreSource) -> np.ndarray:
        """A stable number for each row's shard key."""
        c = self.config
        if c.shards is None and not c.shard_by and len(source.lengths) <= SHARD:
            return np.zeros(len(source.lengths), np.int64)  # one shard: nobody need be asked for its id
        return by_document(source.documents, lambda d: int(key_numbers([named(c.shard_by, store.document_id(d), "shard_by")])[0]))

    def language(self, id: str) -> int:
        name = named(self.config.language_by, id, "language_by")
        if name not in self.config.languages:
            raise UserError(f"objective.languages: document {id!r} is in {name!r}, which is not listed")
        return self.config.languages.index(name)

    # ------------------------------------------------------------------------------------------------------------- who is near

    def refresh(self, sources: Sequence[ClusterSource], corpus: Corpus, seed: int, step: int,
                wanted: int) -> tuple[list[Rows], dict[str, float]]:
        """Section 2.3: sample shards, embed their texts, keep the best pairs, group them."""
        evidence = sources[0].evidence
        shards = self.sampled_shards(sources[0], seed, step, wanted)
        places = np.flatnonzero(np.isin(evidence.shards, shards))
        vectors = corpus.embed(evidence.source, evidence.rows[places])
        rows, report = [], {}
        for number, source in enumerate(sources):
            targets = np.flatnonzero(np.isin(source.targets.shards, shards))
            if source.targets.source is source.evidence.source:
                target_vectors = vectors[np.searchsorted(evidence.rows[places], source.targets.rows[targets])]
            else:
                target_vectors = corpus.embed(source.targets.source, source.targets.rows[targets])
            links, across = self.links(source, targets, target_vectors, places, vectors, shards, corpus)
            clusters = self.clusters(source, links, across, example_keys(seed, step, torch.tensor([number])))
            rows.append(rows_of_clusters(clusters))
            if number == 0:
                linked = len(np.unique(links.targets))
                report = {"targets_without_links": len(targets) - linked,
                          "links_per_target": float((~across).sum()) / max(len(targets), 1),
                          "links_per_target_between_languages": float(across.sum()) / max(len(targets), 1),
                          "link_relevance": float(links.scores.mean()) if len(links) else 0.0}
        if not len(rows[0]["target_counts"]):
            raise UserError(f"none of {len(shards)} shards holds two different texts that may be linked, so there is nothing to rebuild a "
                            "text from: take fewer objective.shards, or more text")
        return rows, report

    def sampled_shards(self, source: ClusterSource, seed: int, step: int, wanted: int) -> np.ndarray:
        """The shards of a round, drawn anew for each: `shards_per_round`, or as many as hold two targets for every cluster wanted."""
        names, counts = np.unique(source.targets.shards, return_counts=True)
        order = permutation(len(names), seed, step)
        few = self.config.shards_per_round or 1 + int(np.searchsorted(np.cumsum(counts[order]), 2 * wanted))
        return np.sort(names[order[:few]])

    def links(self, source: ClusterSource, targets: np.ndarray, target_vectors: np.ndarray, places: np.ndarray, vectors: np.ndarray,
              shards: np.ndarray, corpus: Corpus) -> tuple[Links, np.ndarray]:
        """All links of these shards by the texts' places in `source`, and (N,) bool, which are between languages."""
        found = []
        for shard in shards[corpus.rank::corpus.size]:
            t = np.flatnonzero(source.targets.shards[targets] == shard)
            e = np.flatnonzero(source.evidence.shards[places] == shard)
            if not len(t) or len(e) < 2:
                continue
            here = self.shard_links(source, targets[t], target_vectors[t], places[e], vectors[e], corpus)
            found.append(Links(targets[t][here.targets], places[e][here.evidence], here.scores))
        mine = Links.joined(found)
        links = Links(*(corpus.gather(getattr(mine, name)) for name in ("targets", "evidence", "scores")))
        links = links.select(np.lexsort((-links.scores, links.targets)))  # in an order that no number of ranks changes
        return links, source.targets.languages[links.targets] != source.evidence.languages[links.evidence]

    def shard_links(self, source: ClusterSource, targets: np.ndarray, target_vectors: np.ndarray, evidence: np.ndarray,
                    vectors: np.ndarray, corpus: Corpus) -> Links:
        """The links of one shard, by position among its targets and evidence."""
        c = self.config
        sides = [Side(side.numbers[rows], side.languages[rows]) for side, rows in ((source.targets, targets), (source.evidence, evidence))]
        if c.mode == "knn":
            kinds = [(None, c.num_evidence)]
        elif c.thresholds == "one":
            kinds = [(None, round((c.same_links + c.cross_links) * len(targets)))]
        else:
            kinds = [(False, round(c.same_links * len(targets))), (True, round(c.cross_links * len(targets)))]
        several = len(np.unique(sides[1].languages)) > 1 or len(np.unique(sides[0].languages)) > 1
        kinds = [(across, k) for across, k in kinds if k and (several or not across)]
        if c.search == "exact":
            keep = nearest_pairs if c.mode == "knn" else best_pairs
            return Links.joined([keep(target_vectors, vectors, may_link(*sides, across), k) for across, k in kinds])
        wide = max(c.candidates, c.num_evidence + 1)
        scores, numbers = corpus.nearest(target_vectors, vectors, wide, c.search)
        found = numbers >= 0
        t, rank = np.nonzero(found)
        near = Links(t, numbers[t, rank], scores[t, rank])
        allowed = [near.select(may_link(*sides, across)(near.targets, near.evidence)) for across, _ in kinds]
        return Links.joined([part.nearest(k) if c.mode == "knn" else part.best(k) for part, (_, k) in zip(allowed, kinds)])

    def clusters(self, source: ClusterSource, links: Links, across: np.ndarray, key: Tensor) -> Clusters:
        if self.config.mode == "knn":
            return one_cluster_each(links)
        sides = (source.evidence, source.targets)
        ties = uniform(key, "clusters", torch.arange(sum(len(side) for side in sides))).numpy()
        tokens = [np.minimum(side.lengths + 2, self.max_len) for side in sides]
        return make_clusters(links, across, tokens[1], tokens[0], self.cluster_tokens, ties)

    # ---------------------------------------------------------------------------------------------------------- one batch

    def collate(self, examples: Related) -> MargeBatch:
        owner_t, owner_e = (torch.repeat_interleave(torch.arange(len(n)), n) for n in (examples.target_counts, examples.evidence_counts))
        order_t, order_e = by_length(owner_t, examples.targets), by_length(owner_e, examples.evidence)
        targets, evidence = examples.targets.select(order_t), examples.evidence.select(order_e)
        written, places, labels = self.written(targets, examples.languages[order_t])
        framed, read = self.framed(targets), self.framed(evidence)
        own = examples.target_numbers[order_t][:, None] == examples.evidence_numbers[order_e][None]
        others = owner_t[:, None] != owner_e[None]
        splits = range(1, len(examples.target_counts))  # one bucket for each cluster: no padding
        sums = [torch.zeros(len(splits) + 1, dtype=torch.int64).index_add(0, owner, texts.lengths)
                for owner, texts in ((owner_t, written), (owner_e, read))]
        counts = {"reconstruction": len(labels)} | ({"distillation": len(targets)} if "distillation" in self.terms else {})
        return MargeBatch(counts, len(framed.ids) + len(read.ids) + len(written.ids), targets.documents, flat(read), flat(framed),
                          flat(written), places, labels, Layout.of(sums[0], splits), Layout.of(sums[1], splits), own | others, others,
                          tuple(zip(examples.target_counts.tolist(), examples.evidence_counts.tolist())))

    def written(self, targets: Documents, languages: Tensor) -> tuple[Documents, Tensor, Tensor]:
        """The decoder's input - prefix, text -, where it is asked for the next token, and that token: text, [SEP]."""
        sizes = torch.tensor([len(prefix) for prefix in self.prefixes])
        size = sizes[languages]
        text = targets.part(torch.zeros_like(targets.lengths), targets.lengths.clamp(max=self.max_len - 1 - int(sizes.max())))
        lengths = size + text.lengths
        starts = lengths.cumsum(0) - lengths
        ids = torch.empty(int(lengths.sum()), dtype=torch.int64)
        ids[spans(starts, size)] = torch.cat([self.prefixes[language] for language in languages.tolist()])
        ids[spans(starts + size, text.lengths)] = text.ids
        places = spans(starts + size - 1, text.lengths + 1)
        labels = torch.cat((ids[1:], ids[:1]))[places]
        labels[(text.lengths + 1).cumsum(0) - 1] = self.tokenizer.sep_id
        return Documents(ids, lengths, targets.keys, targets.documents), places, labels

    def forward(self, batch: MargeBatch) -> Step:
        states, vectors = self.read(batch.evidence)
        targets = self.vectors(batch.targets)
        relevance = targets @ vectors.T  # (Nt, M): equation 1, the cosine
        shown = relevance.detach() if self.config.relevance == "detached" else relevance
        memory = Memory(states, batch.queries, batch.keys, self.biases(batch, shown))
        with Looked(self.decoder if "distillation" in self.terms else None) as looked:
            hidden = self.decoder(self.encoder, batch.written, memory)[batch.places]
        loss, right = self.output.loss(hidden, self.encoder.words, batch.labels)
        terms = {"reconstruction": loss}
        if "distillation" in self.terms:
            terms["distillation"] = self.distillation(looked, batch, relevance)
        return Step(terms, {"accuracy": (right, len(batch.labels)), **self.measured(batch, relevance.detach())})

    def read(self, evidence: Tokens) -> tuple[Tensor, Tensor]:
        """States of all evidence tokens (S, D), and the texts' vectors of length 1 (M, D) fp32: each text is encoded once."""
        self.evidence_encoder.compute_dtype = self.encoder.compute_dtype
        states = self.evidence_encoder.states(evidence)
        first = states[self.config.document_layers][evidence.layout.first_rows]
        return self.evidence_encoder.final_norm(states[-1]), F.normalize(self.encoder.final_norm(first).float(), dim=1)

    def vectors(self, texts: Tokens) -> Tensor:
        """Vectors of length 1 (B, D) fp32, by the document encoder alone."""
        return F.normalize(self.encoder(texts, rows=texts.layout.first_rows).float(), dim=1)

    def biases(self, batch: MargeBatch, relevance: Tensor) -> list[Bias]:
        """For each layer with cross-attention the bias beta * relevance, (1, 1 or H, T, S) in each cluster; own copies are hidden."""
        dtype = self.encoder.compute_dtype
        shape = {}  # bucket of queries -> which target each token is of, which text each key is of, and their relevance
        t = e = 0
        for bucket, keys, (some_t, some_e) in zip(batch.queries.buckets, batch.keys.buckets, batch.clusters):
            of_target, of_text = (
                (layout.sequence[k.start:k.stop, None] == torch.arange(first, first + n, device=relevance.device)).to(relevance)
                for layout, k, first, n in ((batch.written.layout, bucket, t, some_t), (batch.evidence.layout, keys, e, some_e)))
            part = (slice(t, t + some_t), slice(e, e + some_e))
            shape[bucket] = of_target, of_text, relevance[part], batch.hidden[part]
            t, e = t + some_t, e + some_e

        def layer(beta: Tensor) -> Bias:
            def rule(a: Bucket, _: Bucket) -> Tensor:
                of_target, of_text, near, hidden = shape[a]
                scores = beta[:, None, None] * near  # (H, t, m); spread over tokens by products, whose backward are sums
                scores = of_target @ scores.masked_fill(hidden, 0.0) @ of_text.T
                never = (of_target @ hidden.to(of_target) @ of_text.T) > 0
                return scores.to(dtype).masked_fill(never, torch.finfo(dtype).min)[None]
            return make_bias(batch.queries, batch.keys, rule, dtype)

        made = [layer(beta) for beta in self.beta.view(self.beta_layers, -1)]
        return made if len(made) > 1 else made * self.config.decoder_layers

    def distillation(self, looked: "Looked", batch: MargeBatch, relevance: Tensor) -> Tensor:
        """Sum over targets of KL(p || q): p from the decoder's mean raw attention scores of each evidence text, q from relevance."""
        scores = looked.scores(batch.written.layout, batch.evidence.layout)  # (Nt, M)
        lowest = torch.finfo(torch.float32).min
        p = scores.masked_fill(batch.hidden, lowest).log_softmax(1)
        q = relevance.masked_fill(batch.hidden, lowest).log_softmax(1)
        return (p.exp() * (p - q)).masked_fill(batch.hidden, 0.0).sum()

    @torch.no_grad()
    def measured(self, batch: MargeBatch, relevance: Tensor) -> dict[str, tuple[Tensor, Tensor | int]]:
        """Mean relevance within clusters and to other clusters' evidence, and the scale."""
        return {"relevance_used": (relevance.masked_fill(batch.hidden, 0.0).sum(), (~batch.hidden).sum()),
                "relevance_random": ((relevance * batch.others).sum(), batch.others.sum()),
                "beta": (self.beta.mean() * len(batch.clusters), len(batch.clusters))}

    def generate(self, prompts: list[Tensor], config: GenerationConfig, language: int = 0) -> list[Tensor]:
        """Write one text from all these evidence texts together, each as relevant as the others (section 3: f is 1 for given evidence).

        Args:
            prompts: ids of the evidence texts without special tokens, cut to `max_len`.
            language: which of `languages` it is to be in.
        Returns:
            one tensor of ids without special tokens.
        """
        device = self.encoder.words.weight.device
        kept = [prompt[: self.max_len - 2] for prompt in prompts]
        documents = Documents(torch.cat(kept), torch.tensor([len(ids) for ids in kept]), torch.zeros(len(kept), dtype=torch.int64),
                              torch.arange(len(kept)))
        evidence = flat(self.framed(longest_first(documents)[0])).to(device)
        training, begin = self.training, self.prefixes[language].to(device)
        self.eval()
        with torch.no_grad():
            states, keys = self.read(evidence)[0], Layout.of([len(evidence.ids)], device=device)
            memory = Memory(states, Layout.of([1], device=device), keys).hypotheses(config.beams)
            config = config.model_copy(update={"longest": min(config.longest, self.max_len - len(begin))})
            never = self.vocabulary.special.clone()
            never[self.tokenizer.sep_id] = False
            hypotheses = Hypotheses(self.encoder, self.decoder, self.output, self.decoder.begin(memory))
            made = generate(hypotheses, begin[None], self.tokenizer.sep_id, never, config)
        self.train(training)
        return made

    def show(self, batch: MargeBatch) -> list[Shown]:
        shown: list[Shown] = []
        with torch.no_grad():
            relevance = self.vectors(batch.targets) @ self.read(batch.evidence)[1].T
        asked = dict(zip(batch.places.tolist(), batch.labels.tolist()))
        t = e = 0
        for c, (some_t, some_e) in enumerate(batch.clusters):
            shown.append(Note(f"cluster {c + 1}: {some_t} targets are written from {some_e} evidence texts"))
            for m in range(e, e + some_e):
                start, stop = batch.evidence.layout.cu_seqlens[m:m + 2].tolist()
                shown.append(Row(f"evidence {m - e + 1}", [Token(id, id) for id in batch.evidence.ids[start:stop].tolist()]))
            for b in range(t, t + some_t):
                near = ", ".join("itself: hidden" if batch.hidden[b, m] else f"{m - e + 1}: {relevance[b, m]:.3f}"
                                 for m in range(e, e + some_e))
                start, stop = batch.written.layout.cu_seqlens[b:b + 2].tolist()
                ids = batch.written.ids.tolist()
                tokens = [Token(ids[i], asked[i], "next") if i in asked else Token(ids[i], ids[i]) for i in range(start, stop)]
                shown.append(Row(f"document {int(batch.documents[b])}, relevance of the evidence {near}", tokens))
            t, e = t + some_t, e + some_e
        return shown


class Looked:
    """Inside this context keeps the decoder's queries and keys, from which mean raw attention scores follow."""

    def __init__(self, decoder: Decoder | None):
        self.cross = [block.cross for block in decoder.blocks if block.cross is not None] if decoder else []
        self.queries, self.keys, self.handles = [], [], []

    def __enter__(self) -> "Looked":
        for cross in self.cross:
            self.handles.append(cross.q.register_forward_hook(lambda _, __, out: self.queries.append(out.detach())))
            self.handles.append(cross.kv.register_forward_hook(lambda _, __, out: self.keys.append(out.detach().chunk(2, 1)[0])))
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()

    def scores(self, targets: Layout, evidence: Layout) -> Tensor:
        """(Nt, M) fp32: the mean of q.k / sqrt(d) over layers, heads and pairs of tokens, which is a product of mean q and mean k."""
        total = 0.0
        for q, k, cross in zip(self.queries, self.keys, self.cross):
            scale = (q.shape[1] / cross.heads) ** -0.5 / cross.heads
            total = total + scale * (mean_rows(q, targets) @ mean_rows(k, evidence).T)
        return total / len(self.cross)


def mean_rows(x: Tensor, layout: Layout) -> Tensor:
    """(T, D) -> (B, D) fp32 means over the tokens of each sequence."""
    sums = x.new_zeros(len(layout.lengths), x.shape[1], dtype=torch.float32).index_add(0, layout.sequence, x.float())
    return sums / layout.cu_seqlens.diff()[:, None]


def by_length(owner: Tensor, texts: Documents) -> Tensor:
    """The texts of each cluster longest first, clusters in order."""
    order = texts.lengths.argsort(descending=True, stable=True)
    return order[owner[order].argsort(stable=True)]


def with_layers(encoder: Encoder, blocks: Sequence[nn.Module]) -> Encoder:
    """An encoder of these layers around the very embeddings and norms of another."""
    config = encoder.config.model_copy(update={"layers": len(blocks)})
    with torch.device("meta"):
        made = Encoder(config)
    for part in ("words", "positions", "types", "norm", "project", "relative", "final_norm"):
        setattr(made, part, getattr(encoder, part))
    made.blocks = nn.ModuleList(blocks)
    made.compute_dtype = encoder.compute_dtype
    return made


def named(pattern: str | None, id: str, option: str) -> str:
    """The first group of `pattern` in a document's id; the whole id without a pattern."""
    if pattern is None:
        return id
    found = re.search(pattern, id)
    if found is None or not found.groups():
        raise UserError(f"objective.{option}: {pattern!r} finds no group in the document id {id!r}")
    return found[1]
