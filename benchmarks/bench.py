"""`make bench`: everything that costs time, beside what people use today, in one table (runs/bench/table.md, table.json beside it).

    python benchmarks/bench.py [--quick] [--threads 2] [--only masked encode ...] [--output runs/bench]

Every contender is a process of its own; they take turns, and a matrix product is timed between rounds. One warm-up and five rounds
(--quick: one, of small batches: whether it runs, not how fast). What is finished is written at once, so an interrupted run leaves its
part of the table. A peer that is not installed is a line that says so. Run it on an idle machine, or believe nothing.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from made_up import write as write_data
from turns import Contender, in_turns, seconds

from foretext.files import whole_file, write_json
from foretext.objectives import OBJECTIVES

PACKAGES = ("torch", "transformers", "tokenizers", "sentence-transformers", "faiss-cpu", "marge-pytorch", "numpy")
FLAGS = ("shipped", "bf16", "best")

# part -> (the peers by their names in peers.py, what of ours, the cases)
STEPS = {
    "masked": (["bert", "padded", "modernbert"], {"objective": "mlm", "settings": {"selection": "token"}}, ["full", "mixed"]),
    "electra": (["electra"], {"objective": "electra"}, ["full", "mixed"]),
    "mpnet": (["mpnet"], {"objective": "mpnet"}, ["full"]),
    "retromae": (["retromae"], {"objective": "retromae"}, ["full"]),
    "marge": (["marge"], {"objective": "marge"}, ["full", "full shared"]),
}

# (part, case, peer) -> what the project aims at
AIMS = {
    ("masked", "full", "bert"): ">= 2.5x best flags, >= 4x bf16, >= 5x fp32",
    ("masked", "full", "modernbert"): ">= 1.3x best flags",
    ("masked", "mixed", "padded"): ">= 1.7x best flags",
    ("mpnet", "full", "mpnet"): ">= 1.3x best flags",
    ("retromae", "full", "retromae"): ">= 1.4x best flags",
    ("marge", "full", "marge"): ">= 1.15x best flags, the same work",
    ("marge", "full shared", "marge"): ">= 2x best flags, evidence shared",
    ("encode", "encode", "sentence-transformers"): ">= 1.5x bf16, >= 2.8x fp32",
}
NAMES = {"bert": "transformers BertForMaskedLM, its Trainer", "padded": "the same, logits of predicted rows only",
         "modernbert": "transformers ModernBert, sparse, equal FLOPs",
         "mpnet": "two streams of MPNetModel", "electra": "transformers Electra, both networks", "retromae": "BertForMaskedLM + BertLayer",
         "marge": "marge-pytorch", "sentence-transformers": "sentence-transformers"}


class Bench:
    """One run: what was asked, what was found so far, and the file it goes into."""

    def __init__(self, asked: argparse.Namespace):
        self.output, self.threads, self.quick, self.precision = asked.output, asked.threads, asked.quick, asked.precision
        self.data, self.logs = asked.output / "data", asked.output / "logs"
        self.texts, self.rounds = (4, 1) if asked.quick else (32, asked.rounds)
        self.begin = time.monotonic()
        self.found: dict[str, Any] = {"conditions": conditions(asked), "parts": {}, "complete": False}

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begin:5.0f} s] {text}", flush=True)

    def about(self, **more) -> dict[str, Any]:
        return {"threads": self.threads, "data": str(self.data), "texts": self.texts, "cases": ["full"]} | more

    def turns(self, part: str, wanted: dict[str, tuple[str, dict[str, Any]]], cases: list[str], rounds: int | None = None):
        """Start the contenders {name: (script, description)}, measure them, end them: what `in_turns` returns."""
        contenders: list[Contender] = []
        try:
            for name, (script, about) in wanted.items():
                contenders.append(Contender(name, script, about | {"cases": cases}, self.logs / part))
                if self.threads == 1:
                    contenders[-1].ready()  # one process at a time; with more threads they get ready side by side
            for contender in contenders:
                if contender.ready().problem:
                    self.say(f"{part}: {contender.name}: {contender.problem}")
            tell = lambda text: self.say(f"{part}: {text}")  # noqa: E731
            return in_turns(contenders, cases, rounds or self.rounds, self.gemm, not self.quick, tell)
        finally:
            for contender in contenders:
                contender.close()

    def keep(self, part: str, found: dict[str, Any]) -> None:
        self.found["parts"][part] = found
        self.found["conditions"]["load average at the end"] = list(os.getloadavg())
        self.found["conditions"]["seconds"] = round(time.monotonic() - self.begin)
        write_json(self.output / "table.json", self.found)
        with whole_file(self.output / "table.md", "w") as file:
            file.write("\n".join(table(self.found)) + "\n")

    def run(self, only: list[str]) -> None:
        """Every part, or some."""
        self.output.mkdir(parents=True, exist_ok=True)
        self.say("writing made-up data")
        write_data(self.data, 0.4 if self.quick else 4)
        self.gemm = Contender("gemm", "gemm.py", self.about(), self.logs).ready()
        try:
            for part in only:
                self.say(part)
                self.keep(part, PARTS[part](self))
            self.found["complete"] = True
            self.keep(only[-1], self.found["parts"][only[-1]])
        finally:
            self.gemm.close()


def conditions(asked: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    models = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return {"quick": asked.quick, "threads": asked.threads, "cores of this process": len(os.sched_getaffinity(0)),
            "processor": models[0] if models else platform.machine(), "python": platform.python_version(),
            "versions": {name: installed(name) for name in PACKAGES}, "load average at the start": list(os.getloadavg())}


# ------------------------------------------------------------------------------------------------------------------ parts


def objectives(bench: Bench) -> dict[str, Any]:
    """The step of every objective, one process after another."""
    found = {}
    for name, kind in OBJECTIVES.items():
        cases = ["full", "full shared"] if kind.reads == "clusters" else ["full", "mixed"]
        about = bench.about(objective=name, precision=bench.precision)
        found[name] = bench.turns("objectives", {name: ("steps.py", about)}, cases)
    return found


def steps(part: str):
    """A part in which our step and its peers take turns."""
    def run(bench: Bench) -> dict[str, Any]:
        peers, ours, cases = STEPS[part]
        wanted = {"ours": ("steps.py", bench.about(**ours))}
        for peer in peers:
            for flags in FLAGS if peer == peers[0] else ("best",):
                wanted[f"{peer} {flags}"] = ("peers.py", bench.about(peer=peer, flags=flags))
        return bench.turns(part, wanted, cases)

    return run


def encode(bench: Bench) -> dict[str, Any]:
    """Texts to vectors, and whether they are the same vectors."""
    def about(library: str, flags: str) -> tuple[str, dict[str, Any]]:
        vectors = bench.data / f"vectors-{library}-{flags}.npy"
        texts = 32 if bench.quick else 256
        return "peers.py", bench.about(peer="encode", library=library, flags=flags, texts=texts, vectors=str(vectors))

    wanted = {"ours": about("foretext", "bf16"), "ours fp32": about("foretext", "shipped")}
    wanted |= {f"sentence-transformers {flags}": about("sentence-transformers", flags) for flags in FLAGS}
    found = bench.turns("encode", wanted, ["encode"])
    files = [bench.data / f"vectors-{name}.npy" for name in ("foretext-shipped", "sentence-transformers-shipped", "foretext-bf16")]
    if all(file.exists() for file in files):
        ours, theirs, low = map(np.load, files)
        found["largest difference, fp32"] = float(np.abs(ours - theirs).max())
        found["smallest cosine, bf16 to fp32"] = float((low * theirs).sum(1).min())
    return found


def finetune(bench: Bench) -> dict[str, Any]:
    wanted = {"ours": ("peers.py", bench.about(peer="finetune", library="foretext", flags="best"))}
    for flags in FLAGS:
        theirs = bench.about(peer="finetune", library="sentence-transformers", flags=flags)
        wanted[f"sentence-transformers {flags}"] = ("peers.py", theirs)
    return bench.turns("finetune", wanted, ["encode"])


def prepare(bench: Bench) -> dict[str, Any]:
    """Large is ten times small; a share of small's time is that of starting."""
    wanted = {"ours": ("costs.py", bench.about(cost="prepare")), "tokenizer alone": ("costs.py", bench.about(cost="tokenizer"))}
    return bench.turns("prepare", wanted, ["small", "large"], rounds=min(bench.rounds, 3))


def checkpoint(bench: Bench) -> dict[str, Any]:
    return bench.turns("checkpoint", {"ours": ("costs.py", bench.about(cost="checkpoint"))}, ["save"])


def equality(bench: Bench) -> dict[str, Any]:
    contender = Contender("equality", "costs.py", bench.about(cost="equality"), bench.logs).ready()
    answer = {"problem": contender.problem} if contender.problem else contender.ask("")
    contender.close()
    return answer


def script(name: str, arguments, quick_arguments=None):
    """A part that is a script with a table of its own."""
    def run(bench: Bench) -> dict[str, Any]:
        chosen = (quick_arguments if bench.quick and quick_arguments is not None else arguments)(bench)
        environment = os.environ | {"OMP_NUM_THREADS": str(bench.threads), "COLUMNS": "120"}
        command = [sys.executable, str(Path(__file__).with_name(name)), *map(str, chosen)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        (bench.logs / f"{name}.txt").write_text(done.stderr, encoding="utf-8")
        output = done.stdout.rstrip()
        problem = None if done.returncode == 0 else f"ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:200]}"
        return {"command": f"benchmarks/{name} {' '.join(map(str, chosen))}".strip(), "output": output, "problem": problem}

    return run


PARTS = {
    "equality": equality,
    "objectives": objectives,
    **{part: steps(part) for part in STEPS},
    "encode": encode,
    "finetune": finetune,
    "prepare": prepare,
    "checkpoint": checkpoint,
    "corruption": script("corruption.py", lambda bench: [bench.data / "tokenizer"]),
    "search": script("search.py", lambda bench: ["--threads", bench.threads, "--queries", 256],  # so many that the rounded scan pays
                     lambda bench: ["--threads", bench.threads, "--queries", 256, "--rows", 10_000, "--rounds", 2]),
    "refresh": script("refresh.py", lambda bench: ["--sizes", 1000, 10_000], lambda bench: ["--sizes", 200, 800, "--search", "exact"]),
    "growth": script("growth.py", lambda bench: ["--rounds", 2, "--output", bench.output],
                     lambda bench: ["--quick", "--output", bench.output]),
}


# -------------------------------------------------------------------------------------------------------------- the table


def table(found: dict[str, Any]) -> list[str]:
    """Everything that was found, as markdown."""
    c, parts = found["conditions"], found["parts"]
    lines = ["# What things cost", ""]
    if c["quick"]:
        lines += ["**Quick form: small batches and one round. It shows that everything runs; its numbers mean nothing.**", ""]
    if not found["complete"]:
        lines += [f"**Not complete: {', '.join(name for name in PARTS if name not in parts)} not measured.**", ""]
    loads = f"{c['load average at the start'][0]:.1f} at the start, {c['load average at the end'][0]:.1f} at the end"
    every = [run for part in parts.values() for run in ([part] if "gemm" in part else part.values()) if isinstance(run, dict)]
    products = [run["gemm"] for run in every if "gemm" in run]
    best = ", ".join(f"{kind} {max(p[kind] for p in products) / 1e9:.0f}" for kind in ("fp32", "bf16") if products and kind in products[0])
    lines += [f"{c['processor']}, {c['cores of this process']} cores for this, threads: {c['threads']}; load {loads}; {c['seconds']} s. "
              f"Python {c['python']}; " + ", ".join(f"{name} {value}" for name, value in c["versions"].items()) + ".",
              f"Best matrix product seen, GFLOP/s: {best or 'none timed'}. "
              "Median (best) of the rounds. Peak: the matrix product timed around each round, in the same precision. "
              "!: it moved by more than a tenth.", ""]
    lines += against(parts) + every_objective(parts) + others(parts)
    return lines


def measured(run: dict[str, Any], name: str, case: str) -> list[dict[str, Any]]:
    return run["results"].get(name, {}).get(case, [])


def rate(answers: list[dict[str, Any]], of: str = "tokens") -> float:
    return answers[0][of] / seconds(answers)[0]


def against(parts: dict[str, Any]) -> list[str]:
    """Each peer in its three forms beside ours."""
    rows = []
    for part in (*STEPS, "encode", "finetune"):
        if part not in parts:
            continue
        run = parts[part]
        peers = STEPS[part][0] if part in STEPS else ["sentence-transformers"]
        cases = STEPS[part][2] if part in STEPS else ["encode"]
        for case in cases:
            for peer in peers:
                rows.append(compared(part, case, peer, run))
    if not rows:
        return []
    return ["## Beside what people use today", "",
            "Real tokens per second. Best flags: bf16 autocast, no dropout, fused AdamW, tuned allocator. Full: 32 texts of 128 tokens; "
            "mixed: 32 of log-normal lengths, which peers pad to the longest. BertForMaskedLM as shipped and in bf16 is trained by "
            "transformers' Trainer, with best flags by a plain loop, which costs it less. Logits of predicted rows and ModernBert are "
            "measured with best flags only: nobody has them by default.", "",
            "| | peer | as shipped, fp32 | bf16 | best flags | ours | ours / shipped | / bf16 | / best flags | aim |",
            "|---|---|---|---|---|---|---|---|---|---|", *rows, ""]


def compared(part: str, case: str, peer: str, run: dict[str, Any]) -> str:
    ours = measured(run, "ours", case)
    cells, ratios = [], []
    for flags in FLAGS:
        name = f"{peer} {flags}"
        answers = measured(run, name, case)
        problem = run["problems"].get(name)
        cells.append(two(answers) if answers else problem or "")
        ratios.append(f"{rate(ours) / rate(answers):.2f}x" if ours and answers else "")
    what = {"masked": "MLM", "finetune": "fine-tune MiniLM on pairs", "encode": "encode, MiniLM, mixed lengths"}.get(part, part)
    label = what if part in ("encode", "finetune") else f"{what}, {case}"
    mine = two(ours) if ours else run["problems"].get("ours", "-")
    flag = "" if run["steady"] else " !"
    aim = AIMS.get((part, case, peer), "")
    return f"| {label}{flag} | {NAMES[peer]} | {' | '.join(cells)} | {mine} | {' | '.join(ratios)} | {aim} |"


def two(answers: list[dict[str, Any]], of: str = "tokens") -> str:
    """`median (best)`"""
    middle, best = seconds(answers)
    return f"{answers[0][of] / middle:,.0f} ({answers[0][of] / best:,.0f})"


def share_of_peak(answers: list[dict[str, Any]]) -> float:
    return median(a["flops"] / a["seconds"] / a["peak"][a["precision"]] for a in answers)


def every_objective(parts: dict[str, Any]) -> list[str]:
    if "objectives" not in parts:
        return []
    lines = ["## A training step of every objective", "",
             "Four layers of 256, 30,528 entries. full: texts of 128 tokens; mixed: log-normal lengths. MARGE: target tokens, a quarter of "
             "the texts, four evidence texts each. FLOPs by formula, of real tokens and needed head rows, or counted (~). Aims: masked LM "
             "at least 70 % of the peak on one core, 60 % on two; loading and corruption, and the optimizer, at most 3 % of the step.", "",
             "| objective | texts | tokens/s | MFLOP/token | GFLOP/s | of peak | loading | optimizer | clipping | memory, MB |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for name, run in parts["objectives"].items():
        for case, answers in run["results"][name].items():
            if not answers:
                lines.append(f"| {name} | {case} | {run['problems'].get(name, '-')} | | | | | | | |")
                continue
            a, spent = answers[0], seconds(answers)[0]
            shares = [median(answer[what] / answer["seconds"] for answer in answers) for what in ("loading", "optimizer", "clip")]
            work = f"{'~' if a['how'] == 'counted' else ''}{a['flops'] / a['tokens'] / 1e6:.1f} | {a['flops'] / spent / 1e9:.0f}"
            parts_of_step = " | ".join(f"{share:.1%}" for share in shares)
            lines.append(f"| {name}{'' if run['steady'] else ' !'} | {case} | {two(answers)} | {work} | {share_of_peak(answers):.0%} | "
                         f"{parts_of_step} | {answers[-1]['memory']:,.0f} |")
    return [*lines, ""]


def others(parts: dict[str, Any]) -> list[str]:
    """What is not a step."""
    lines = ["## The rest", ""]
    if (found := parts.get("equality")) and "loss" in found:
        lines += [f"- Same weights, same labels, fp32: our masked loss and BertForMaskedLM's differ by {found['loss_apart']:.1e}, the "
                  f"gradients by {found['gradient_apart']:.1e} of their norm (aim: 1e-5 each)."]
    elif found:
        lines += [f"- Equality with BertForMaskedLM: {found['problem']}."]
    if (found := parts.get("encode")) and "largest difference, fp32" in found:
        ours = measured(found, "ours fp32", "encode")
        lines += [f"- Encode: our vectors and sentence-transformers' differ by at most {found['largest difference, fp32']:.1e} in fp32; "
                  f"our bf16 ones have a cosine of at least {found['smallest cosine, bf16 to fp32']:.5f} with them; ours in fp32: "
                  f"{two(ours)} tokens/s; in bf16 {two(measured(found, 'ours', 'encode'), 'documents')} documents/s."]
    if found := parts.get("prepare"):
        rates = {name: {case: rate(answers, "bytes") / 1e6 for case, answers in cases.items() if answers}
                 for name, cases in found["results"].items()}
        ours, bare = rates["ours"], rates["tokenizer alone"]
        lines += [f"- Prepare, {case}: {ours[case]:.2f} MB/s; the bare tokenizer on the same texts {bare[case]:.2f}; "
                  f"{ours[case] / bare[case]:.0%} of it (aim: 90 %)." for case in ours if case in bare]
        lines += [f"- Prepare: {name}: {problem}." for name, problem in found["problems"].items()]
    if (found := parts.get("checkpoint")) and (answers := measured(found, "ours", "save")):
        a, waits = answers[0], seconds(answers)[0]
        written = median(answer["written"] for answer in answers)
        lines += [f"- Checkpoint of {a['parameters'] / 1e6:.0f} M parameters, {a['bytes'] / 1e6:,.0f} MB: the loop waits {waits:.2f} s "
                  f"while it is copied, {waits / (500 * a['step']):.2%} of 500 steps of {a['tokens']:,} tokens ({a['step']:.1f} s each); "
                  f"on disk after {written:.1f} s, {a['bytes'] / written / 1e6:,.0f} MB/s."]
    elif found:
        lines += [f"- Checkpoint: {problem}." for problem in found["problems"].values()]
    for part in ("corruption", "search", "refresh", "growth"):
        if found := parts.get(part):
            problem = f" **{found['problem']}**" if found["problem"] else ""
            lines += ["", f"`{found['command']}`{problem}", "", "```", found["output"], "```"]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few minutes, to see that everything runs")
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds after one warm-up")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="of every objective's step; default: what is fast here")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    bench = Bench(parser.parse_args())
    only = parser.parse_args().only
    try:
        bench.run(only)
    except KeyboardInterrupt:
        print(f"\ninterrupted: what was measured is in {bench.output / 'table.md'}")
        raise SystemExit(130) from None
    print((bench.output / "table.md").read_text(encoding="utf-8"))
    bench.say(f"{bench.output / 'table.md'}, and table.json beside it")


if __name__ == "__main__":
    main()
