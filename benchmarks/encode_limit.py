"""How near encoding in bf16 on a CPU is to its limit: the kernels that any encoder needs, alone, beside ours and sentence-transformers.

    python benchmarks/encode_limit.py [--threads 2] [--texts 256] [--rounds 7]

The limit is a program that does nothing but tokenise, multiply at the speed of the best matrix product of the same round, and run
attention's products, softmax and norms at the speed they have alone (GELU: what it adds to its product), on data that lies ready: no copy,
no residual sum, no scaling, no Python between them. Kernels run as encoding runs them, batches side by side. In turns; medians.
"""

import argparse
import statistics
from collections.abc import Callable

import gemm
import numpy as np
import torch
from peers import minilm
from turns import clock

from foretext.model.encoder import Tokens
from foretext.retrieval.embed import TextEncoder, in_lanes
from foretext.retrieval.lanes import side_by_side
from foretext.training.loop import tune_allocator

PLAIN, WITH_GELU = "a product", "the same with its GELU"
STEP = 16  # numbers: softmax takes longer over rows that do not end with a whole register


def kernels(model: TextEncoder, batches: list[Tokens], lanes: int) -> dict[str, Callable[[], None]]:
    """What every layer has to do, by name; each call does it for all layers and batches."""
    config, dtype = model.encoder.config, model.compute_dtype
    heads, width = config.heads, config.width // config.heads
    boxes = [[(bucket.size * heads, bucket.width) for bucket in tokens.layout.buckets] for tokens in batches]

    def at_random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(dtype)

    longest = max(length for batch in boxes for _, length in batch)
    most = max(count * length for batch in boxes for count, length in batch)
    scores = at_random(max(count * length * (length + STEP) for batch in boxes for count, length in batch))
    q = at_random(most * width + longest * width)
    narrow = at_random(max(len(tokens.ids) for tokens in batches), config.width)

    def every(work: Callable[[int, int], None]) -> Callable[[], None]:
        """`work(sequences times heads, length)` for every bucket."""
        def batch(some: list[tuple[int, int]]) -> None:
            for _ in range(config.layers):
                for box in some:
                    work(*box)

        return lambda: [*side_by_side(batch, boxes, lanes)].clear()

    def products(count: int, length: int) -> None:
        a, s = q[: count * length * width].view(count, length, width), scores[: count * length * length].view(count, length, length)
        torch.bmm(a, a.transpose(1, 2))
        torch.bmm(s, a)

    def softmax(count: int, length: int, step: int = 1) -> None:
        length, whole = length, -(-length // step) * step
        scores[: count * length * whole].view(count, length, whole).softmax(-1)

    def of_rows(work: Callable[[int], object]) -> Callable[[], None]:
        def batch(tokens: Tokens) -> None:
            for _ in range(config.layers):
                work(len(tokens.ids))

        return lambda: [*side_by_side(batch, batches, lanes)].clear()

    norm, up = model.encoder.blocks[0].ffn_norm, model.encoder.blocks[0].up
    return {
        "attention's products": every(products),
        "softmax": every(softmax),
        "softmax, whole steps": every(lambda count, length: softmax(count, length, STEP)),
        "norms": of_rows(lambda rows: (norm(narrow[:rows]), norm(narrow[:rows]))),
        PLAIN: of_rows(lambda rows: up(narrow[:rows])),
        WITH_GELU: of_rows(lambda rows: up(narrow[:rows], then="gelu")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 2), ("texts", 256), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(given.threads)
    tune_allocator()
    now, dtype = clock(given.threads), torch.bfloat16
    folder, texts = minilm({"texts": given.texts})
    model = TextEncoder.load(folder, dtype=dtype).freeze()
    model.encoder.compute_dtype = dtype
    theirs = {name: SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": kind})
              for name, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32))}

    _, lengths = model.tokenizer.encode_flat(texts)
    lengths = np.minimum(np.asarray(lengths, np.int64), model.max_len - 2)
    total = int(lengths.sum()) + 2 * len(lengths)
    parts, lanes = in_lanes(lengths + 2, None, model.device)
    batches = [model._frame(np.zeros(int(lengths.sum()), np.int64), np.zeros(len(rows), np.int64), lengths[rows])
               for rows in parts]
    works = {"tokenising": lambda: model.tokenizer.encode_flat(texts)} | kernels(model, batches, lanes)
    works |= {"ours": lambda: model.encode(texts)}
    works |= {f"sentence-transformers {name}": lambda other=other: other.encode(texts, show_progress_bar=False)
              for name, other in theirs.items()}
    best, spent = gemm.make({"threads": given.threads}), {name: [] for name in ("products at the peak", *works)}
    config = model.encoder.config
    operations = 2 * total * config.layers * config.width * (4 * config.width + 2 * config.ffn_width)
    with torch.inference_mode():
        for _ in range(given.rounds + 1):
            for name, work in works.items():
                begin = now()
                work()
                spent[name].append(now() - begin)
            spent["products at the peak"].append(operations / best("")["bf16"])
    took = {name: statistics.median(times[1:]) * 1e3 for name, times in spent.items()}
    took["softmax"] = min(took["softmax"], took.pop("softmax, whole steps"))
    took = {"GELU, in its product": max(0.0, took.pop(WITH_GELU) - took.pop(PLAIN))} | took
    limit = sum(ms for name, ms in took.items() if name != "ours" and "transformers" not in name)
    for name, ms in took.items():
        print(f"{name:<28}{ms:8.0f} ms")
    print(f"{'the limit: their sum':<28}{limit:8.0f} ms")
    for name in theirs:
        theirs_took = took[f"sentence-transformers {name}"]
        print(f"of sentence-transformers {name}: the limit {theirs_took / limit:.2f}x, ours {theirs_took / took['ours']:.2f}x")


if __name__ == "__main__":
    main()
