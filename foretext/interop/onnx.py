"""Text encoders as ONNX graphs, for machines without torch: written, run with onnxruntime, and compared before they are there.

A folder holds `onnx.json`, the tokenizer's files, and a graph for each kind of text whose network differs: ids and mask (B, L) -> vectors
(B, d). A model that reads earlier turns has one more, `contexts.onnx`: ids and mask of the messages, ids and mask of the turns.

    B texts   L longest   d features of a vector
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foretext.errors import UserError
from foretext.files import read_json, whole_folder, write_json
from foretext.text.tokenizer import Tokenizer

OPSET = 17
KINDS = ("query", "document")
AT_ONCE = 64
PROBES = ("mean of an array that ignores nan", "Café Größe, naïve", "東京は日本の首都です", "", "word " * 40)
TOLERANCE = 1e-5
ALIKE = 0.98  # least cosine of an int8 graph's vector and ours


class OnnxEncoder:
    """Texts to vectors with onnxruntime alone.

    Example:
        OnnxEncoder("my-encoder-onnx").encode(["mean that ignores nan"], "query")
    """

    def __init__(self, folder: str | Path, threads: int | None = None):
        """Open a folder that `export_onnx` wrote; `threads`: of one call, default all cores."""
        self.folder, self.settings, self.threads = Path(folder), read_json(Path(folder) / "onnx.json"), threads
        self.tokenizer = Tokenizer.load(self.folder)
        self.similarity: str = self.settings["similarity"]
        self._sessions = {}

    def encode(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
        """(n, d) float32"""
        rows = self._rows([self.settings["prompts"][kind] + text for text in texts])
        return self._run(self.settings["graphs"][kind], [rows])

    def encode_contexts(self, contexts: Sequence[str], earlier: Sequence[str]) -> np.ndarray:
        """Messages with the turns before them, each joined to one text, most recent first; "": the message alone. (n, d) float32"""
        if "contexts" not in self.settings["graphs"]:
            raise UserError(f"{self.folder}: this model reads one message at a time: it was trained without earlier turns")
        vectors = self.encode(contexts, "query")
        some = np.array([i for i, text in enumerate(earlier) if len(self.tokenizer.encode([text])[0])], dtype=np.int64)
        if len(some):
            messages = self._rows([self.settings["prompts"]["query"] + contexts[i] for i in some])
            vectors[some] = self._run(self.settings["graphs"]["contexts"], [messages, self._rows([earlier[i] for i in some])])
        return vectors

    def _rows(self, texts: list[str]) -> list[np.ndarray]:
        texts = [text.lower() for text in texts] if self.settings["lowercase"] else texts
        most, words = self.settings["max_len"] - 2, self.tokenizer
        return [np.array([words.cls_id, *ids[:most], words.sep_id], np.int64) for ids in words.encode(texts)]

    def _run(self, graph: str, sides: list[list[np.ndarray]]) -> np.ndarray:
        found = []
        for first in range(0, len(sides[0]), AT_ONCE):
            padded = [array for rows in sides for array in padded_rows(rows[first : first + AT_ONCE], self.tokenizer.pad_id)]
            session = self._session(graph)
            found.append(session.run(None, {entry.name: array for entry, array in zip(session.get_inputs(), padded)})[0])
        return np.concatenate(found)

    def _session(self, graph: str):
        if graph not in self._sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads or 0
            self._sessions[graph] = onnxruntime.InferenceSession(self.folder / graph, options, providers=["CPUExecutionProvider"])
        return self._sessions[graph]


def padded_rows(rows: Sequence[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """ids and mask (n, L) int64"""
    ids = np.full((len(rows), max(map(len, rows))), pad_id, np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask


def export_onnx(source: str | Path, folder: str | Path, int8: bool = False, overwrite: bool = False) -> dict[str, int]:
    """Write a model folder's networks as graphs; `folder` appears only after they gave the same vectors as ours.

    Args:
        int8: weights of products and tables in 8 bits; what enters a product is rounded to 8 bits by its range at that moment.
    Returns:
        bytes of each graph.
    Raises:
        UserError: the extra `onnx` is not installed, or `source` is no model folder.
        RuntimeError: a graph gives other vectors.
    """
    import importlib.util

    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        raise UserError("ONNX graphs need the packages onnx and onnxruntime: pip install 'foretext[onnx]'")
    import torch

    from foretext.interop.graph import Graph
    from foretext.retrieval.embed import TextEncoder

    model = TextEncoder.load(source, "cpu", torch.float32)
    towers = getattr(model, "towers", None)
    differ = towers is not None or model.document_encoder is not None
    graphs = {"query": "query.onnx", "document": "document.onnx"} if differ else dict.fromkeys(KINDS, "model.onnx")
    joint = hasattr(model, "encode_contexts")
    if joint:
        graphs["contexts"] = "contexts.onnx"
    longest = min(model.max_len, 160)  # longer than any window, so that the graph holds it
    with whole_folder(folder, overwrite) as new:
        for kind, name in graphs.items():
            if not (new / name).is_file():
                write_graph(Graph(model, kind), new / name, longest, sides=2 if kind == "contexts" else 1)
                if int8:
                    to_int8(new / name)
        model.tokenizer.save(new, model.max_len, token_types=False)
        write_json(new / "onnx.json", {
            "format": 1, "graphs": graphs, "max_len": model.max_len, "lowercase": model.lowercase, "similarity": model.similarity,
            "prompts": {kind: model.prompt(kind) for kind in KINDS}, "dimension": model.dimension, "framing": "[CLS] text [SEP]",
            "unknown_characters": f"id {model.tokenizer.entries} + crc32(UTF-8 bytes) mod {model.tokenizer.hash_buckets}"
            if model.tokenizer.hash_buckets else "the unknown token",
        })
        compare(model, OnnxEncoder(new), joint, int8)
    return {name: (Path(folder) / name).stat().st_size for name in dict.fromkeys(graphs.values())}


def write_graph(network, path: Path, longest: int, sides: int) -> None:
    """Trace `network` on two texts of different length; batch and length stay free."""
    import torch

    ids = torch.ones(2, longest, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, longest // 2 :] = 0
    inputs = [name + suffix for suffix in ("", "_earlier")[:sides] for name in ("input_ids", "attention_mask")]
    axes = {name: {0: "batch", 1: "length" + name.removeprefix("input_ids").removeprefix("attention_mask")} for name in inputs}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: whatever it took for constant is compared afterwards
        torch.onnx.export(network.eval(), (ids, mask) * sides, path, input_names=inputs, output_names=["vectors"], opset_version=OPSET,
                          dynamic_axes=axes | {"vectors": {0: "batch"}}, dynamo=False)


def to_int8(path: Path) -> None:
    """Round a graph's weights to 8 bits, in place."""
    import logging

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path)
    gemms_as_products(graph.graph)
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends shape inference, which a traced graph does not need
    try:
        quantize_dynamic(graph, path, op_types_to_quantize=["MatMul", "Gather"], per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logger.setLevel(level)


def gemms_as_products(graph) -> None:
    """x W^T + b as a product and a sum, W turned once: the quantiser would turn a weight that two products share twice."""
    import onnx
    from onnx import helper, numpy_helper

    weights, turned, nodes = {weight.name: weight for weight in graph.initializer}, {}, []
    same = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}  # equal weights are kept once

    def root(name: str) -> str:
        return root(same[name]) if name in same else name

    for node in graph.node:
        if node.op_type != "Gemm":
            nodes.append(node)
            continue
        x, weight, *bias = node.input
        weight = root(weight)
        if weight not in turned:
            array = np.ascontiguousarray(numpy_helper.to_array(weights[weight]).T)
            turned[weight] = onnx.numpy_helper.from_array(array, f"{weight}.T")
        product = f"{node.output[0]}.product" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [x, f"{weight}.T"], [product], f"{node.name}.product"))
        nodes += [helper.make_node("Add", [product, bias[0]], list(node.output), node.name)] if bias else []
    kept = [weight for name, weight in weights.items() if name not in turned]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(node for node in nodes if node.op_type != "Identity" or root(node.input[0]) not in turned)
    graph.initializer.extend([*kept, *turned.values()])


def compare(model, found: OnnxEncoder, joint: bool, int8: bool) -> None:
    """Raises RuntimeError where the graphs' vectors are not the model's (int8: do not point where the model's do)."""
    pairs = [(model.encode(PROBES, kind), found.encode(PROBES, kind), kind) for kind in KINDS]
    if joint:
        turns = (*PROBES[1:], "")
        pairs.append((model.encode_contexts(PROBES, turns), found.encode_contexts(PROBES, turns), "contexts"))
    for expected, vectors, kind in pairs:
        if int8:
            lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(vectors, axis=1)
            cosine = float(((expected * vectors).sum(1) / lengths).min())
            if not cosine >= ALIKE:
                raise RuntimeError(f"in 8 bits the vectors of {kind} texts turn too far (cosine {cosine:.3f}): export without int8")
            continue
        apart = float(np.abs(vectors - expected).max()) / max(1.0, float(np.abs(expected).max()))
        if not apart <= TOLERANCE:
            raise RuntimeError(f"the ONNX graph of {kind} texts gives other vectors: they differ by {apart:.1e}")
