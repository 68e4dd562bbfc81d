"""Texts in, vectors out: a model folder (transformers, sentence-transformers or ours) that embeds, one text or a corpus.

n texts   T tokens   B texts of one batch   D features of a vector
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretext.errors import UserError
from foretext.files import inside, read_json, whole_file, write_json
from foretext.model.encoder import Encoder, Tokens
from foretext.model.folder import locate, read_tensors
from foretext.model.heads import Pooling, sequence_vectors
from foretext.model.huggingface import load_encoder
from foretext.model.layers import Linear
from foretext.model.precision import default_device, default_dtype
from foretext.model.towers import is_towers
from foretext.progress import progress
from foretext.retrieval.lanes import TOKENS, even_budget, lanes_for, side_by_side
from foretext.text.tokenizer import Tokenizer

Kind = Literal["query", "document"]
MODULES = re.compile("(Transformer|Router) Pooling( Dense)?( Normalize)?")  # the chains that are read
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}  # as sentence-transformers looks them up
TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 65_536}


class Cut(NamedTuple):
    """What did not fit into `max_len`."""

    texts: int
    tokens: int


def prompt_of(prompts: dict[str, str], kind: Kind) -> str:
    """Which of a model's prompts goes before a text of this kind."""
    return next((prompts[name] for name in PROMPT_NAMES[kind] if name in prompts), prompts.get("default", ""))


class TextEncoder:
    """An encoder with everything that turns its token states into one vector per text.

    Attributes:
        last_cut: what the latest `encode` cut off.
        notes: sentences on what was assumed on loading.

    Example:
        model = TextEncoder.load("runs/quickstart/export")
        scores = model.encode(["mean that ignores nan"], "query") @ model.encode(documents, "document").T
    """

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Tokenizer,
        pooling: Pooling = "cls",
        normalize: bool = True,
        prompts: dict[str, str] | None = None,
        max_len: int | None = None,
        similarity: str = "cosine",
        dtype: torch.dtype | None = None,
        document_encoder: Encoder | None = None,
        projection: Linear | None = None,
    ):
        """Wrap a live encoder; its weights are used as they are at each call.

        Args:
            prompts: text put before each text, by kind ("query", "document").
            max_len: longest input in tokens, special tokens and prompt included; default: the encoder's.
            similarity: "cosine" or "dot", how two vectors are meant to be compared.
            dtype: of the computation; default: the encoder's own.
            document_encoder: for documents, where they do not have the same as queries.
            projection: applied to the pooled states.
        """
        if similarity not in ("cosine", "dot"):
            raise UserError(f"similarity {similarity!r} is neither 'cosine' nor 'dot'")
        if tokenizer.size > encoder.config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.size} entries but the encoder only {encoder.config.vocab_size} "
                "word vectors: they do not belong together"
            )
        self.encoder, self.tokenizer, self.pooling, self.normalized = encoder, tokenizer, pooling, normalize
        self.document_encoder, self.projection = document_encoder, projection
        self.prompts, self.similarity, self.dtype = dict(prompts or {}), similarity, dtype
        self.max_len = min(max_len or encoder.config.max_len, encoder.config.max_len)
        self.lowercase, self.last_cut, self.notes = False, Cut(0, 0), ()

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "TextEncoder":
        """Load a folder or hub id; without sentence-transformers' files vectors are means of token states, unnormalised.

        Args:
            device: default: the GPU if there is one.
            dtype: of the computation; default: fp32 on the CPU, so that scores are those of other libraries, and bf16 on a GPU that
                multiplies it. The verbs take bf16 wherever the hardware multiplies it (`verbs.models`).
        Raises:
            UserError: not a model folder, or it asks for a module that is not here.
        """
        folder = locate(source)
        if is_towers(folder):
            from foretext.retrieval.towers import TowerEncoder  # it is one of these, so that it cannot be imported above

            return TowerEncoder.load(folder, device, dtype)
        settings = read_settings(folder)
        encoder = load_encoder(settings.transformer).eval()
        document_encoder = load_encoder(settings.document_transformer).eval() if settings.document_transformer else None
        projection = _read_projection(settings.projection) if settings.projection else None
        device = default_device(device)
        dtype = dtype or default_dtype(device)
        model = cls(
            encoder.to(device),
            Tokenizer.load(settings.transformer),
            settings.pooling,
            settings.normalize,
            settings.prompts,
            settings.max_len,
            settings.similarity,
            dtype,
            document_encoder and document_encoder.to(device),
            projection and projection.to(device),
        )
        model.lowercase, model.notes = settings.lowercase, settings.notes
        return model

    def freeze(self) -> "TextEncoder":
        """Only embed from now on: no gradients, and linear weights cast to the computation's dtype once. Returns itself."""
        for network in self._networks():
            network.requires_grad_(False)
            for module in network.modules():
                if isinstance(module, Linear):
                    module.freeze(self.compute_dtype)
        for kind in ("query", "document"):  # requests that overlap then leave each other's precision alone
            self.network(kind).compute_dtype = self.compute_dtype
        return self

    @property
    def overlapping(self) -> bool:
        """Whether threads can use the networks at the same time."""
        return True

    @property
    def dimension(self) -> int:
        """D"""
        return self.encoder.config.width if self.projection is None else self.projection.out_features

    def network(self, kind: Kind) -> Encoder:
        """The encoder of texts of this kind."""
        return self.document_encoder if kind == "document" and self.document_encoder is not None else self.encoder

    @property
    def device(self) -> torch.device:
        return self.encoder.words.weight.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """What texts are embedded in."""
        return self.dtype or self.encoder.compute_dtype

    def prompt(self, kind: Kind) -> str:
        """What is put before a text of this kind."""
        if kind not in PROMPT_NAMES:
            raise UserError(f"kind {kind!r} is neither 'query' nor 'document'")
        return prompt_of(self.prompts, kind)

    def encode(
        self, texts: Sequence[str], kind: Kind = "document", token_budget: int | None = None, show_progress: bool = False
    ) -> np.ndarray:
        """Embed texts: (n, D) float32, in the order given.

        Args:
            token_budget: real tokens per batch; default: 4,096 on a CPU, 65,536 on a GPU.
        """
        prompt = self.prompt(kind)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {i} to embed is {text!r}, which is no string; an empty text is ''")
        ready = [prompt + text for text in texts] if prompt else list(texts)
        ids, lengths = self.tokenizer.encode_flat([text.lower() for text in ready] if self.lowercase else ready)
        return self.encode_tokens(ids, lengths, token_budget, show_progress, kind)

    def encode_tokens(
        self, ids: np.ndarray, lengths: np.ndarray, token_budget: int | None = None, show_progress: bool = False,
        kind: Kind = "document",
    ) -> np.ndarray:  # fmt: skip
        """Embed token rows without special tokens, ids (T,) end to end and lengths (n,): -> (n, D) float32."""
        ids, lengths = np.asarray(ids), np.asarray(lengths, np.int64)
        starts = np.cumsum(lengths) - lengths
        kept = np.minimum(lengths, self.max_len - 2)
        self.last_cut = Cut(int((kept < lengths).sum()), int((lengths - kept).sum()))
        vectors = np.empty((len(kept), self.dimension), np.float32)
        total = int(kept.sum()) + 2 * len(kept)
        batches, lanes = in_lanes(kept + 2, token_budget, self.device, self.overlapping)
        network = self.network(kind)
        network.compute_dtype = self.encoder.compute_dtype

        def embed(rows: np.ndarray) -> int:
            tokens = self._frame(ids, starts[rows], kept[rows])
            vectors[rows] = self.embed(tokens, kind).float().cpu().numpy()
            return sum(tokens.layout.lengths)

        with inference(network, self.dtype), progress("embedding tokens", total) if show_progress else nullcontext() as advance:
            for done in side_by_side(embed, batches, lanes):
                if advance:
                    advance(done)
        return vectors

    def embed(self, tokens: Tokens, kind: Kind = "document") -> Tensor:
        """One vector per sequence of a flat batch (special tokens included): -> (B, D), with gradients where they are on."""
        vectors = sequence_vectors(self.network(kind), tokens, self.pooling)
        vectors = vectors if self.projection is None else self.projection(vectors)
        return F.normalize(vectors, dim=-1) if self.normalized else vectors

    def _frame(self, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Tokens:
        """Cls x sep for every row."""
        firsts = np.cumsum(lengths + 2) - (lengths + 2)
        flat = np.empty(int(lengths.sum()) + 2 * len(lengths), np.int64)
        flat[firsts], flat[firsts + lengths + 1] = self.tokenizer.cls_id, self.tokenizer.sep_id
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        flat[np.repeat(firsts + 1, lengths) + within] = ids[np.repeat(starts, lengths) + within]
        # A CPU copies nothing into padding where all texts of a bucket have the same length; a GPU needs no buckets.
        splits = (np.flatnonzero(np.diff(lengths)) + 1).tolist() if self.device.type == "cpu" else None
        return Tokens.of(torch.from_numpy(flat).to(self.device), (lengths + 2).tolist(), splits=splits)

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides a vector: configuration, weights, tokenizer."""
        digest = hashlib.sha256(self.encoder.config.model_dump_json(exclude={"dropout", "attention_dropout", "qkv_init"}).encode())
        digest.update(self.tokenizer.fingerprint.encode() + bytes([self.lowercase]))
        for name, tensor in sorted(self._weights().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _networks(self) -> list[nn.Module]:
        return [network for network in (self.encoder, self.document_encoder, self.projection) if network is not None]

    def _weights(self) -> dict[str, Tensor]:
        others = {"document": self.document_encoder, "projection": self.projection}
        more = {f"{part}.{name}": x for part, module in others.items() if module is not None for name, x in module.state_dict().items()}
        return self.encoder.state_dict() | more


@contextmanager
def inference(encoder: Encoder, dtype: torch.dtype | None) -> Iterator[None]:
    """No gradients, no dropout, the chosen dtype; afterwards the encoder is as it was (it may be in the middle of a training)."""
    training, before = encoder.training, encoder.compute_dtype
    encoder.eval()
    encoder.compute_dtype = dtype or before
    try:
        with torch.inference_mode():
            yield
    finally:
        encoder.compute_dtype = before
        encoder.train(training)


def batches_of(order: np.ndarray, lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Cut `order` into runs of at most `budget` tokens (or of one text)."""
    ends = np.cumsum(lengths[order])
    first = 0
    while first < len(order):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + budget, side="right")))
        yield order[first:last]
        first = last


def in_lanes(lengths: np.ndarray, token_budget: int | None, device: torch.device, overlapping: bool = True) -> tuple[list[np.ndarray], int]:
    """Batches of sequences of these lengths, and how many of them to compute at a time.

    Args:
        token_budget: real tokens per batch; None: what suits the device and lets lanes end together.
        overlapping: whether threads can use the network at the same time.
    """
    total = int(lengths.sum())
    budget = token_budget or TOKENS_AT_ONCE.get(device.type, TOKENS_AT_ONCE["cpu"])
    lanes = lanes_for(total, TOKENS, device) if overlapping else 1
    if lanes > 1 and not token_budget:
        budget = even_budget(total, int(lengths.max()), budget, lanes)
    order = np.argsort(-lengths, kind="stable")  # longest first: tight buckets, and memory runs out at once or never
    return list(batches_of(order, lengths, budget)), lanes


# ------------------------------------------------------------------------------------------- sentence-transformers' files


@dataclass(frozen=True)
class Settings:
    """What the files of sentence-transformers say about a model folder."""

    transformer: Path
    document_transformer: Path | None = None
    projection: Path | None = None
    pooling: Pooling = "mean"
    normalize: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    max_len: int | None = None
    lowercase: bool = False
    similarity: str = "cosine"
    notes: tuple[str, ...] = ()


def read_settings(folder: Path) -> Settings:
    """Read modules.json and what it names, in the keys of sentence-transformers up to 5 and of 6.

    Raises:
        UserError: a module, a pooling or a similarity that is not here.
    """
    if not (folder / "modules.json").is_file() and (folder / "passage_model").is_dir():
        note = f"{folder}: query_model and passage_model without sentence-transformers' files are read as RetroMAE's: cls, dot product"
        return Settings(folder / "query_model", folder / "passage_model", pooling="cls", similarity="dot", notes=(note,))
    if not (folder / "modules.json").is_file():
        note = (f"{folder}: no modules.json says how tokens become one vector, so it is their mean, not normalised "
                "(what sentence-transformers does with such a folder)")  # fmt: skip
        return Settings(folder, notes=(note,))
    settings = Settings(folder)
    kinds = []
    for module in sorted(read_json(folder / "modules.json"), key=lambda module: module["idx"]):
        kind, path = module["type"].rpartition(".")[2], inside(folder, module["path"])
        kinds.append(kind)
        if kind == "Transformer":
            settings = replace(settings, transformer=path, **_read_transformer(path))
        elif kind == "Router":
            settings = replace(settings, **_read_router(folder, path))
        elif kind == "Dense":
            settings = replace(settings, projection=path)
        elif kind == "Pooling":
            settings = replace(settings, pooling=_read_pooling(path / "config.json"))
        elif kind == "Normalize":
            settings = replace(settings, normalize=True)
    if not MODULES.fullmatch(" ".join(kinds)):
        raise UserError(f"{folder}/modules.json: the modules are {', '.join(kinds)}; only Transformer (or a Router of one for queries and "
                        "one for documents), Pooling and then maybe Dense and Normalize are read")  # fmt: skip
    return replace(settings, **_read_prompts(folder))


def _read_transformer(path: Path) -> dict[str, Any]:
    config = read_json(path / "sentence_bert_config.json") if (path / "sentence_bert_config.json").is_file() else {}
    longest = config.get("max_seq_length")
    if longest is None and (path / "tokenizer_config.json").is_file():
        longest = read_json(path / "tokenizer_config.json").get("model_max_length")
    return {"max_len": None if longest is None else int(longest), "lowercase": bool(config.get("do_lower_case"))}


def _read_router(folder: Path, path: Path) -> dict[str, Any]:
    """The two transformers of an untied bi-encoder."""
    structure = read_json(path / "router_config.json").get("structure", {})
    if set(structure) != {"query", "document"} or any(len(route) != 1 for route in structure.values()):
        raise UserError(f"{path}/router_config.json: only a route of one transformer for query and for document each is read, found "
                        f"{structure}")  # fmt: skip
    query, document = (inside(path, structure[kind][0]) for kind in ("query", "document"))
    return {"transformer": query, "document_transformer": document, **_read_transformer(query)}


def _read_projection(path: Path) -> Linear:
    """A Dense module without activation."""
    config = read_json(path / "config.json")
    if not config.get("activation_function", "Identity").endswith("Identity"):
        raise UserError(f"{path}: the activation is {config['activation_function']}; only a linear projection is read")
    layer = Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    layer.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in read_tensors(path).items()})
    return layer.eval()


def _read_pooling(path: Path) -> Pooling:
    config = read_json(path)
    old = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last", "lasttoken": "last"}
    modes = [old.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    modes = config.get("pooling_mode", modes or "mean")
    modes = [old.get(mode, mode) for mode in ([modes] if isinstance(modes, str) else modes)]
    if len(modes) != 1 or modes[0] not in ("cls", "mean", "last"):
        raise UserError(f"{path}: the pooling is {' + '.join(modes)}; only 'cls', 'mean' and 'last' are read")
    if config.get("include_prompt", True) is not True:
        raise UserError(f"{path}: include_prompt is false, but here a prompt always takes part in the vector")
    return modes[0]


def _read_prompts(folder: Path) -> dict[str, Any]:
    path = folder / "config_sentence_transformers.json"
    config = read_json(path) if path.is_file() else {}
    prompts = dict(config.get("prompts") or {})
    if (default := config.get("default_prompt_name")) is not None and not any(name in prompts for name in ("query", "document")):
        prompts["default"] = prompts.get(default, "")
    similarity = {"dot_product": "dot", None: "cosine"}.get(config.get("similarity_fn_name"), config.get("similarity_fn_name"))
    if similarity not in ("cosine", "dot"):
        raise UserError(f"{path}: the similarity is {similarity!r}; only 'cosine' and 'dot' are searched with")
    return {"prompts": prompts, "similarity": similarity}


# ------------------------------------------------------------------------------------------------------- a corpus on disk


def encode_corpus(
    model: TextEncoder,
    ids: Iterable[str],
    texts: Iterable[str],
    output: str | Path,
    *,
    kind: Kind = "document",
    shard: tuple[int, int] = (0, 1),
    chunk: int = 16_384,
    token_budget: int | None = None,
    half: bool = False,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Path:
    """Embed a corpus into `vectors-{shard}.npy`, `ids-{shard}.txt` and `manifest.json`.

    Interrupted at any moment, the same call goes on where it was; finished, it does nothing. Memory holds one chunk.

    Args:
        ids, texts: of equal length, read once, in order.
        shard: (i, n): this call embeds every n-th chunk from the i-th; n calls, on any machines, fill one folder.
        chunk: texts embedded (and kept, should the run be interrupted) at a time.
        half: store float16 instead of float32.
        overwrite: replace what this shard holds.
    Raises:
        UserError: the folder holds vectors of another model, other texts or other settings.
    """
    output, (mine, shards) = Path(output), shard
    if not 0 <= mine < shards:
        raise UserError(f"shard {mine} of {shards}: shards are numbered from 0 to {shards - 1}")
    dtype = np.dtype(np.float16 if half else np.float32)
    parts, done_file = output / f".chunks-{mine}", output / f"shard-{mine}.json"
    described = {"format": 1, "model": model.fingerprint(), "pooling": model.pooling, "normalize": model.normalized,
                 "similarity": model.similarity, "prompt": model.prompt(kind), "max_length": model.max_len, "dtype": dtype.name,
                 "compute_dtype": str(model.compute_dtype).removeprefix("torch."),
                 "dimension": model.dimension, "shards": shards, "chunk": chunk}  # fmt: skip
    if overwrite:
        for file in (done_file, *parts.glob("*")):
            file.unlink(missing_ok=True)
    _agree(output, described, overwrite)
    before = read_json(done_file)["chunks"] if done_file.is_file() else None
    digests, rows = [], 0
    total = len(texts) if isinstance(texts, Sized) else None
    with progress("embedding texts", total) if show_progress else nullcontext() as advance:
        for number, (some_ids, some_texts) in enumerate(_chunks(ids, texts, chunk)):
            if number % shards == mine:
                digest = hashlib.sha256(json.dumps([some_ids, some_texts]).encode()).hexdigest()
                file = parts / f"{number:08d}-{digest[:16]}.npy"
                if before is not None and (len(before) <= len(digests) or before[len(digests)] != digest):
                    raise UserError(f"{output}: shard {mine} was made of other texts; name another output, or add --overwrite")
                if before is None and not file.is_file():
                    _embed_chunk(model, some_ids, some_texts, kind, token_budget, dtype, file)
                digests.append(digest)
                rows += len(some_ids)
            if advance:
                advance(len(some_ids))
    if before is not None:
        return output
    files = [parts / f"{number:08d}-{digest[:16]}.npy" for number, digest in zip(itertools.count(mine, shards), digests)]
    with whole_file(output / f"vectors-{mine}.npy") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, model.dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in files:
            file.write(np.load(part).tobytes())
    with whole_file(output / f"ids-{mine}.txt") as file:
        for part in files:
            file.write(part.with_suffix(".txt").read_bytes())
    write_json(done_file, {"count": rows, "chunks": digests})
    for file in parts.glob("*"):
        file.unlink()
    if parts.is_dir():
        parts.rmdir()
    _agree(output, described, True)
    return output


def _chunks(ids: Iterable[str], texts: Iterable[str], size: int) -> Iterator[tuple[list[str], list[str]]]:
    pairs = zip(ids, texts, strict=True)
    while some := list(itertools.islice(pairs, size)):
        yield [pair[0] for pair in some], [pair[1] for pair in some]


def _embed_chunk(model: TextEncoder, ids: list[str], texts: list[str], kind: Kind, token_budget: int | None,
                 dtype: np.dtype, file: Path) -> None:  # fmt: skip
    if wrong := [name for name in ids if "\n" in name]:
        raise UserError(f"the id {wrong[0]!r} holds a line break, and ids are written one per line; rename it")
    vectors = model.encode(texts, kind, token_budget).astype(dtype)
    with whole_file(file.with_suffix(".txt"), "w") as handle:
        handle.writelines(f"{name}\n" for name in ids)
    with whole_file(file) as handle:  # last: a chunk with its vectors is complete
        np.save(handle, vectors)


def _agree(output: Path, described: dict[str, Any], overwrite: bool) -> None:
    """Write manifest.json with the counts of the shards that are finished; refuse a folder that was made otherwise."""
    path = output / "manifest.json"
    if path.is_file() and not overwrite:
        there = read_json(path)
        other = [key for key, value in described.items() if there.get(key) != value]
        if other == ["compute_dtype"]:
            raise UserError(f"{output} holds vectors computed in {there.get('compute_dtype', 'an unknown dtype')}, and these would be "
                            f"in {described['compute_dtype']}; choose --dtype, name another output, or add --overwrite")
        if other:
            raise UserError(f"{output} holds vectors with another {', '.join(other)}; name another output, or add --overwrite")
    finished = ((shard, output / f"shard-{shard}.json") for shard in range(described["shards"]))
    counts = {str(shard): read_json(file)["count"] for shard, file in finished if file.is_file()}
    write_json(path, described | {"counts": counts})
