"""ONNX graphs: onnxruntime's vectors are ours, for every network, length and number of texts."""

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.interop.export import export
from foretext.interop.onnx import OnnxEncoder, export_onnx
from foretext.model.presets import preset
from foretext.model.towers import new_encoder
from foretext.retrieval.embed import TextEncoder
from foretext.text.tokenizer import Tokenizer
from foretext.verbs.pretrain import as_text_encoder, export_graphs
from tests.conftest import made_up_texts
from tests.objectives.table import make_objective

TEXTS = ["", "ba", *made_up_texts(5, seed=9), "lo mu " * 60]


@pytest.mark.parametrize("layout", ["bert-tiny", "mpnet-tiny", "modernbert-tiny"])
def test_pooled_encoders(layout, tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(made_up_texts(300, seed=7), kind="bpe", vocab_size=512)  # MPNet's padding has to be 1
    changes = {"layers": 4, "window": 8} if layout.startswith("modernbert") else {}
    encoder = new_encoder(preset(layout, tokenizer.size, max_len=64, **changes))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model = TextEncoder(encoder.eval(), tokenizer, "mean", True, {"query": "ask: "})
    export(model, tmp_path / "model")
    assert export_onnx(tmp_path / "model", tmp_path / "onnx").keys() == {"model.onnx"}
    found = OnnxEncoder(tmp_path / "onnx")
    for kind in ("query", "document"):
        np.testing.assert_allclose(found.encode(TEXTS, kind), model.encode(TEXTS, kind), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.encode(TEXTS[3:4], kind), model.encode(TEXTS[3:4], kind), rtol=0, atol=1e-5)


def test_convert_with_and_without_turns_and_in_8_bits(tmp_path):
    model = as_text_encoder(make_objective("convert", windows=(3,)).eval())
    export(model, tmp_path / "model")
    whole = export_onnx(tmp_path / "model", tmp_path / "onnx")
    found, turns = OnnxEncoder(tmp_path / "onnx", threads=1), [*TEXTS[1:], ""]
    np.testing.assert_allclose(found.encode(TEXTS, "query"), model.encode(TEXTS, "query"), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.encode(TEXTS, "document"), model.encode(TEXTS, "document"), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.encode_contexts(TEXTS, turns), model.encode_contexts(TEXTS, turns), rtol=0, atol=1e-5)
    lines = export_graphs(str(tmp_path / "model"), tmp_path / "int8", "onnx", int8=True)
    assert len(lines) == 3
    assert (tmp_path / "int8" / "query.onnx").stat().st_size < 0.5 * whole["query.onnx"]
    cosines = (OnnxEncoder(tmp_path / "int8").encode(TEXTS, "query") * model.encode(TEXTS, "query")).sum(1)
    assert cosines.min() > 0.98


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(UserError, match="choose folder or onnx"):
        export_graphs("x", tmp_path, "tflite")
