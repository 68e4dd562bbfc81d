"""What is not a training step: preparing against the bare tokenizer, checkpoints, and whether the masked step agrees with transformers'."""

import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
from turns import Answer, clock, serve


def prepare(about: dict):
    """The whole of `foretext prepare` with a tokenizer that is there."""
    from foretext.text.prepare import prepare as run_prepare

    data, now = Path(about["data"]), clock(about["threads"])

    def run(case: str) -> Answer:
        with tempfile.TemporaryDirectory(dir=data) as folder:
            begin = now()
            report = run_prepare(data / f"{case}.jsonl", Path(folder) / "store", tokenizer=data / "tokenizer", workers=about["threads"])
            return {"seconds": now() - begin, "bytes": report.counts["bytes"]}

    return run


def tokenizer(about: dict):
    """`encode_batch_fast` on the same texts and cores, and nothing else."""
    from tokenizers import Tokenizer

    data, now = Path(about["data"]), clock(about["threads"])
    backend = Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    texts = {case: [json.loads(line)["text"] for line in (data / f"{case}.jsonl").read_text().splitlines()] for case in about["cases"]}
    size = {case: sum(len(text.encode()) for text in some) for case, some in texts.items()}

    def run(case: str) -> Answer:
        begin = now()
        for first in range(0, len(texts[case]), 1000):
            backend.encode_batch_fast(texts[case][first:first + 1000], add_special_tokens=False)
        return {"seconds": now() - begin, "bytes": size[case]}

    return run


def checkpoint(about: dict):
    """Checkpoints of a model of the usual size, written as the loop does it; and one step, to hold them against."""
    import steps

    from foretext.model.encoder import Encoder
    from foretext.model.presets import preset
    from foretext.objectives.mlm import MLM
    from foretext.text.batches import Batches
    from foretext.text.tokenizer import Tokenizer
    from foretext.training.checkpoint import Writer
    from foretext.training.loop import TrainingConfig, compute_dtype
    from foretext.training.optim import OptimConfig, make_optimizer
    from foretext.training.step import backward

    torch.set_num_threads(about["threads"])
    now = clock(about["threads"])
    words = Tokenizer.load(Path(about["data"]) / "tokenizer")
    objective = MLM(Encoder(preset("bert-base", words.size, max_len=128)), words)
    objective.encoder.compute_dtype = compute_dtype(TrainingConfig(), steps.ALONE.device)
    optimizer = make_optimizer(objective, OptimConfig())
    texts = steps.read_texts(Path(about["data"]), "full", words, about["texts"])
    micro = Batches(texts, objective.collate, len(texts.lengths), 1024, seed=1).step(0)
    for _ in range(2):  # the first warms up; moments exist from here on
        begin = now()
        backward(objective, micro, steps.ALONE)
        optimizer.step()
        step = now() - begin
        optimizer.zero_grad()
    folder, done = Path(tempfile.mkdtemp(dir=about["data"])), [0]

    def run(_: str) -> Answer:
        done[0] += 1
        with Writer(folder, 1, steps.ALONE) as writer:
            begin, start = now(), time.perf_counter()
            writer.save(objective, optimizer, {"step": done[0], "best_step": None})
            waits = now() - begin
            writer.wait()
            written = time.perf_counter() - start
        (saved,) = (folder / "checkpoints").iterdir()
        size = sum(file.stat().st_size for file in saved.iterdir())
        shutil.rmtree(saved)
        return {"seconds": waits, "written": written, "bytes": size, "step": step, "tokens": sum(batch.tokens for batch in micro),
                "parameters": sum(parameter.numel() for parameter in objective.parameters())}

    return run


def equality(about: dict):
    """Loss and gradients of one fp32 masked step, ours on flat tokens and BertForMaskedLM's on padded ones, same weights and labels."""
    import steps
    from transformers import BertForMaskedLM

    from foretext.model.encoder import Encoder
    from foretext.model.huggingface import load, save_encoder
    from foretext.model.presets import preset
    from foretext.objectives.mlm import MLM
    from foretext.text.batches import Batches
    from foretext.text.tokenizer import Tokenizer
    from foretext.training.step import backward

    torch.set_num_threads(about["threads"])
    torch.manual_seed(0)
    words = Tokenizer.load(Path(about["data"]) / "tokenizer")
    ours = MLM(Encoder(preset("bert-mini", words.size, max_len=128)), words)
    texts = steps.read_texts(Path(about["data"]), "mixed", words, about["texts"])
    (batch,) = Batches(texts, ours.collate, len(texts.lengths), 1 << 40, seed=1).step(0)
    with tempfile.TemporaryDirectory(dir=about["data"]) as folder:
        ids = {"pad": words.pad_id, "cls": words.cls_id, "sep": words.sep_id}
        save_encoder(ours.encoder, Path(folder) / "model", ids, ours.head)
        theirs = BertForMaskedLM.from_pretrained(Path(folder) / "model").eval()
        lengths = batch.tokens_in.layout.lengths
        labels = torch.full((len(batch.tokens_in.ids),), -100).index_copy(0, batch.places, batch.labels)
        pad = lambda x, value: torch.nn.utils.rnn.pad_sequence(x.split(list(lengths)), True, value)  # noqa: E731
        loss = theirs(input_ids=pad(batch.tokens_in.ids, 0), attention_mask=pad(torch.ones_like(labels), 0), labels=pad(labels, -100)).loss
        loss.backward()
        value, count = backward(ours, [batch], steps.ALONE)["mlm"]
        with torch.no_grad():  # its gradients take the way of weights, so that nobody has to match names here
            for parameter in theirs.parameters():
                parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
        theirs.save_pretrained(Path(folder) / "gradients")
        read = load(Path(folder) / "gradients")
    expected = dict(read.encoder.named_parameters(prefix="encoder")) | dict(read.head.named_parameters(prefix="head"))
    got = {name: parameter.grad for name, parameter in ours.named_parameters()}
    far = sum(float((got[name] - expected[name]).square().sum()) for name in got if got[name] is not None)
    size = sum(float(value.square().sum()) for value in expected.values())
    answer = {"loss": float(value) / count, "loss_apart": abs(float(value) / count - float(loss)), "gradient_apart": (far / size) ** 0.5}
    return lambda _: answer


COSTS = {maker.__name__: maker for maker in (prepare, tokenizer, checkpoint, equality)}


if __name__ == "__main__":
    serve(lambda about: COSTS[about["cost"]](about))
