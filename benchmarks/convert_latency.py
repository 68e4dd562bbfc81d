"""One encode on one core: ConveRT and a bert-small of the same vocabulary, in torch, as ONNX graphs and in 8 bits; and what they weigh.

Run: `taskset -c 0 python benchmarks/convert_latency.py`. Weights are random: neither time nor size depends on them. All are measured in
one run, in turns, so that a busy machine slows all of them alike; the numbers are medians over texts of 4 to 40 words, one at a time.
"""

import random
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from foretext.interop.export import write
from foretext.interop.onnx import OnnxEncoder, export_onnx
from foretext.model.presets import preset
from foretext.model.towers import Towers, TowersConfig, new_encoder
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.towers import TowerEncoder
from foretext.text.tokenizer import Tokenizer

VOCABULARY, ROUNDS, TEXTS = 8192, 15, 12


def made_up_texts(count: int, longest: int = 40) -> list[str]:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 8))) for _ in range(6000)]
    return [" ".join(draw.choices(words, k=draw.randint(4, longest))) for _ in range(count)]


def convert(tokenizer: Tokenizer, start: str, quantize: str | None = None) -> TextEncoder:
    torch.manual_seed(0)
    towers = Towers(new_encoder(preset(start, tokenizer.size)), TowersConfig(reduction="2ha", output="ffn_stack"), quantize)
    return TowerEncoder(towers.eval(), tokenizer)


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = Tokenizer.train(made_up_texts(4000), vocab_size=VOCABULARY)
    torch.manual_seed(0)
    bert = TextEncoder(new_encoder(preset("bert-small", tokenizer.size, max_len=62)).eval(), tokenizer, "mean")
    models = {"bert-small": bert, "convert": convert(tokenizer, "convert"),
              "convert, 8-bit tables": convert(tokenizer, "convert", "tables"),
              "convert, 8 bits": convert(tokenizer, "convert", "all"), "convert-mini": convert(tokenizer, "convert-mini")}
    texts, encoders, sizes = made_up_texts(TEXTS), {}, {}
    with tempfile.TemporaryDirectory() as name:
        for model_name, model in models.items():
            folder = Path(name) / model_name
            folder.mkdir()
            write(model, folder, None, {}, None)
            sizes[f"{model_name}"] = (folder / "model.safetensors").stat().st_size
            if "bit" in model_name:
                encoders[model_name] = TextEncoder.load(folder)
                continue
            encoders[model_name] = model
            for kind, int8 in (("ONNX", False), ("ONNX int8", True)):
                graph = f"{model_name}, {kind}"
                sizes[graph] = max(export_onnx(folder, Path(name) / graph, int8).values())
                encoders[graph] = OnnxEncoder(Path(name) / graph, threads=1)
        times = {encoder: [] for encoder in encoders}
        for _ in range(ROUNDS):
            for encoder_name, encoder in encoders.items():
                for text in texts:
                    begin = time.perf_counter()
                    encoder.encode([text], "query")
                    times[encoder_name].append(time.perf_counter() - begin)
    table = Table("model", "one encode, ms", "against bert-small", "weights, MB")
    usual = median(times["bert-small"])
    for encoder_name, seconds in times.items():
        table.add_row(encoder_name, f"{1000 * median(seconds):.2f}", f"{median(seconds) / usual:.2f}", f"{sizes[encoder_name] / 1e6:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
