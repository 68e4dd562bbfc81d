"""Write a model folder that transformers and sentence-transformers load, and do not call it done before they have."""

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from foretext.files import whole_file, whole_folder, write_json
from foretext.model.encoder import Encoder
from foretext.model.folder import Heads, write_heads
from foretext.model.heads import TokenHead
from foretext.model.huggingface import write_encoder
from foretext.model.layers import Linear
from foretext.model.towers import is_towers, write_towers
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.towers import TowerEncoder

KINDS = ("query", "document")
QUERY_MODEL, PASSAGE_MODEL = "query_model", "passage_model"  # RetroMAE's names
TOLERANCE = 1e-5  # of a vector's largest feature or of 1, whichever is larger

# The oldest versions that read these files; a newer library reads them too, an older one warns.
VERSIONS = {"sentence_transformers": "5.0.0", "transformers": "4.50.0", "pytorch": "2.6.0"}
POOLING_MODES = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "mean_sqrt_len_tokens": "mean_sqrt_len",
                 "weightedmean_tokens": "weightedmean", "lasttoken": "last"}  # fmt: skip

PROBES = (
    "mean of an array that ignores nan",
    "Café Größe ÉTÉ naïve, MixedCase and snake_case_names",
    "東京は日本の首都です。 Ünïcödé ¼ ﬁ ①",
    "",
    "def f(x):\n\treturn x ** 2  # squares, 3.14159e-10",
)  # and one that is too long


def export(model: TextEncoder, folder: str | Path, head: TokenHead | None = None, card: Mapping[str, Any] | None = None,
           heads: Heads | None = None, overwrite: bool = False) -> Path:  # fmt: skip
    """Write config, weights, tokenizer, sentence-transformers' files and a model card; load them again elsewhere and compare.

    Args:
        head: the masked-language-model head, written under the stock class's names (`AutoModelForMaskedLM` then loads it).
        card: for README.md: any of title, summary, data, objective, steps, tokens, encoder (what training started from), metrics
            (name -> value), language, license, base_model.
        heads: what else the objective owns, for pre-training to go on later (`heads.safetensors`).
        overwrite: replace a folder that is already there.
    Returns:
        `folder`, which appears only after the probe texts gave the same vectors in every library that is installed.
    Raises:
        UserError: the folder exists, or the family cannot be written (MPNet with another padding id).
        RuntimeError: another library gives other vectors.
    """
    with whole_folder(folder, overwrite) as temporary:
        write(model, temporary, head, card or {}, heads)
        verify(model, temporary)
    return Path(folder)


def write(model: TextEncoder, folder: Path, head: TokenHead | None, card: Mapping[str, Any], heads: Heads | None) -> None:
    """Write every file into an existing folder, unchecked."""
    own = isinstance(model, TowerEncoder)
    if own:
        _write_towers(model, folder)
        first = "Towers"
    elif model.document_encoder is None:
        _write_transformer(model, model.encoder, folder, head)
        first = "Transformer"
    else:
        _write_router(model, folder)
        first = "Router"
    if heads is not None:
        write_heads(folder, heads)

    if own:
        modules = [{"idx": 0, "name": "0", "path": "", "type": "foretext.interop.sentence_transformers.DualEncoder"}]
        write_json(folder / "modules.json", modules)
    else:
        _write_modules(model, first, folder)
    prompts = {name: text for name, text in model.prompts.items() if name != "default"}
    settings = {"__version__": VERSIONS, "prompts": prompts | {kind: model.prompt(kind) for kind in KINDS},
                "default_prompt_name": None, "similarity_fn_name": model.similarity}  # fmt: skip
    write_json(folder / "config_sentence_transformers.json", settings)
    with whole_file(folder / "README.md", "w") as file:
        file.write(model_card(model, head, card, heads))


def _write_modules(model: TextEncoder, first: str, folder: Path) -> None:
    """How token states become a vector, for sentence-transformers."""
    modules = [("", first), ("1_Pooling", "Pooling")]
    modules += [("2_Dense", "Dense")] * (model.projection is not None) + [("2_Normalize", "Normalize")] * model.normalized
    if model.projection is not None and model.normalized:
        modules[-1] = ("3_Normalize", "Normalize")
    write_json(folder / "modules.json", [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                                         for i, (path, kind) in enumerate(modules)])  # fmt: skip
    pooling = {f"pooling_mode_{key}": mode == model.pooling for key, mode in POOLING_MODES.items()}
    width = model.encoder.config.width
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **pooling, "include_prompt": True})
    if model.projection is not None:
        _write_dense(model.projection, folder / "2_Dense")
    if model.normalized:
        write_json(folder / modules[-1][0] / "config.json", {})  # version control drops empty folders


def _write_towers(model: TowerEncoder, folder: Path) -> None:
    """A dual encoder that no class of transformers holds, in foretext's own format."""
    from foretext.interop.auto_model import ForetextConfig, ForetextModel, write_auto_map  # with transformers, which takes seconds

    write_towers(model.towers, folder)
    write_auto_map(folder, AutoConfig=ForetextConfig, AutoModel=ForetextModel)
    model.tokenizer.save(folder, model.max_len, token_types=False)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": model.max_len, "do_lower_case": model.lowercase})


def _write_transformer(model: TextEncoder, encoder: Encoder, folder: Path, head: TokenHead | None = None) -> None:
    """One encoder with its tokenizer, as transformers and the library's Transformer module load it."""
    tokenizer = model.tokenizer
    ids = {"pad": tokenizer.pad_id, "cls": tokenizer.cls_id, "sep": tokenizer.sep_id}
    folder.mkdir(parents=True, exist_ok=True)
    write_encoder(encoder, folder, ids, head, vocab_size=tokenizer.size)
    tokenizer.save(folder, model.max_len, token_types=encoder.config.family in ("bert", "electra"))
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": model.max_len, "do_lower_case": model.lowercase})


def _write_router(model: TextEncoder, folder: Path) -> None:
    """Two encoders: the library's Router, in folders named as RetroMAE names those of a bi-encoder that is not tied."""
    _write_transformer(model, model.encoder, folder / QUERY_MODEL)
    _write_transformer(model, model.document_encoder, folder / PASSAGE_MODEL)
    kind = "sentence_transformers.models.Transformer"
    write_json(folder / "router_config.json", {
        "types": {QUERY_MODEL: kind, PASSAGE_MODEL: kind},
        "structure": {"query": [QUERY_MODEL], "document": [PASSAGE_MODEL]},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    })  # fmt: skip


def _write_dense(projection: Linear, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {f"linear.{name}": tensor.detach().cpu().contiguous() for name, tensor in projection.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {"in_features": projection.in_features, "out_features": projection.out_features,
                                        "bias": projection.bias is not None,
                                        "activation_function": "torch.nn.modules.linear.Identity"})  # fmt: skip


def model_card(model: TextEncoder, head: TokenHead | None, card: Mapping[str, Any], heads: Heads | None) -> str:
    """README.md with the YAML head that the hub reads."""
    import jinja2

    template = (Path(__file__).parent / "card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.ChainableUndefined, keep_trailing_newline=True)
    parameters = sum(parameter.numel() for parameter in getattr(model, "towers", model.encoder).parameters())
    return environment.from_string(template).render(
        model=model, config=model.encoder.config, head=head, card=card, heads=heads, parameters=parameters
    )


def verify(model: TextEncoder, folder: Path) -> dict[str, float]:
    """Largest difference of the probe texts' vectors, by library; the folder is as `write` left it.

    Raises:
        RuntimeError: a difference above 1e-5.
    """
    probes = [*PROBES, "word " * min(model.max_len, 1024)]
    dtype, model.dtype = model.dtype, torch.float32
    try:
        expected = _encode(model, probes)
    finally:
        model.dtype = dtype
    with quiet():
        got = {"foretext": _encode(TextEncoder.load(folder, "cpu", torch.float32), probes)}
        elsewhere = _with_auto_model if isinstance(model, TowerEncoder) else _with_transformers
        got["transformers"] = elsewhere(model, folder, probes)
        if importlib.util.find_spec("sentence_transformers"):
            got["sentence-transformers"] = _with_sentence_transformers(folder, probes)
    scale = max(1.0, float(np.abs(expected).max()))
    found = {library: float(np.abs(vectors - expected).max()) / scale for library, vectors in got.items()}
    for library, apart in found.items():
        if not apart <= TOLERANCE:  # also where it is nan
            worst = probes[int(np.abs(got[library] - expected).max(1).argmax()) % len(probes)][:40]
            raise RuntimeError(f"the exported model is not the same in {library}: vectors differ by {apart:.1e}, most for {worst!r}")
    return found


def _encode(model: TextEncoder, probes: list[str]) -> np.ndarray:
    """(2n, D): the probes as queries, then as documents; so do the functions below."""
    return np.concatenate([model.encode(probes, kind) for kind in KINDS])


def _with_auto_model(model: TowerEncoder, folder: Path, probes: list[str]) -> np.ndarray:
    """By the class that AutoModel finds; ids are ours, for no class of transformers' has a vocabulary with hash buckets."""
    from foretext.interop.auto_model import ForetextModel

    network, tokenizer, found = ForetextModel.from_pretrained(folder), model.tokenizer, []
    for kind in KINDS:
        rows = tokenizer.encode([model.prompt(kind) + text for text in probes])
        rows = [torch.tensor([tokenizer.cls_id, *ids[: model.max_len - 2].tolist(), tokenizer.sep_id]) for ids in rows]
        ids = pad_sequence(rows, True, tokenizer.pad_id)
        with torch.no_grad():
            found.append(network(ids, pad_sequence([torch.ones_like(row) for row in rows], True), kind).pooler_output)
    return torch.cat(found).numpy()


def _with_transformers(model: TextEncoder, folder: Path, probes: list[str]) -> np.ndarray:
    from transformers import AutoModel, AutoTokenizer

    homes = {kind: folder for kind in KINDS}
    if model.document_encoder is not None:
        homes = {"query": folder / QUERY_MODEL, "document": folder / PASSAGE_MODEL}
    found = []
    for kind in KINDS:
        texts = [model.prompt(kind) + text for text in probes]
        texts = [text.lower() for text in texts] if model.lowercase else texts
        tokenizer, network = AutoTokenizer.from_pretrained(homes[kind]), AutoModel.from_pretrained(homes[kind]).eval()
        batch = tokenizer(texts, padding=True, truncation=True, max_length=model.max_len, return_tensors="pt")
        with torch.no_grad():
            states = network(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None]
            if model.pooling == "mean":
                vectors = (states * mask).sum(1) / mask.sum(1)
            else:
                place = 0 if model.pooling == "cls" else mask.sum((1, 2)) - 1
                vectors = states[torch.arange(len(states)), place]
            vectors = vectors if model.projection is None else F.linear(vectors, model.projection.weight, model.projection.bias)
        found.append(F.normalize(vectors, dim=-1) if model.normalized else vectors)
    return torch.cat(found).numpy()


def _with_sentence_transformers(folder: Path, probes: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    # The library wants to be trusted before it imports a module of ours, which a dual encoder's folder names.
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=is_towers(folder))
    encode = {"query": model.encode_query, "document": model.encode_document}
    return np.concatenate([encode[kind](probes, show_progress_bar=False) for kind in KINDS])


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars and reports on weights: what they would say is what is checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
