"""Does a small retriever learn from a cross-encoder? nfcorpus: the retriever, its teacher, and the retriever distilled from it.

    python benchmarks/distil_nfcorpus.py NFCORPUS-FOLDER TEACHER-START -o runs/distil [--retriever FOLDER]

The small retriever is pre-trained on crops of the collection's own documents, unless --retriever names one; TEACHER-START is what the
cross-encoder starts from, a retriever too (all-MiniLM-L6-v2). Train queries alone teach: negatives are drawn from what the small retriever
finds. The cross-encoder learns to score pairs as its start does with two vectors (labels teach it little in as many updates, and what they
teach does not pass on: docs/LOG.md); it scores the groups, and the retriever goes on from its own weights with the KL divergence to those
scores. To tell what the teacher adds, the same training without it is shown too; to tell whether it can add anything, what it makes of the
retriever's own first documents. Settings are chosen with --split dev. Each step is recognised when it is there, so that the same command
goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from foretext.config import check
from foretext.retrieval.collection import Collection, read_collection
from foretext.retrieval.evaluate import Evaluation, evaluate, table
from foretext.retrieval.group_folders import apply_scores
from foretext.retrieval.groups import Groups, write_groups
from foretext.retrieval.mine import MineConfig
from foretext.retrieval.runs import Run, read_run
from foretext.text.prepare import prepare
from foretext.verbs.mine import mine_from
from foretext.verbs.models import encoding_dtype, open_encoder
from foretext.verbs.pretrain import PretrainConfig, pretrain
from foretext.verbs.reranker import RerankerConfig, score_candidates
from foretext.verbs.reranker import finetune as train_reranker
from foretext.verbs.retriever import FinetuneConfig
from foretext.verbs.retriever import finetune as train_retriever


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("teacher")
    parser.add_argument("--retriever", help="a small retriever that exists, instead of pre-training one")
    parser.add_argument("--pretrain-steps", type=int, default=300)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/distil"))
    parser.add_argument("--negatives", type=int, default=20, help="per query, drawn from the first --depth that the retriever finds")
    parser.add_argument("--depth", type=int, default=300)
    parser.add_argument("--teacher-steps", type=int, default=1200)
    parser.add_argument("--teacher-lr", type=float, default=1e-4)
    parser.add_argument("--teacher-len", type=int, default=96, help="tokens of a pair")
    parser.add_argument("--teacher-group", type=int, default=8, help="passages of a query that the teacher learns from")
    parser.add_argument("--steps", type=int, default=400, help="of each training of the retriever")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--max-len", type=int, default=144, help="tokens of a passage")
    parser.add_argument("--queries", type=int, default=2590, help="train queries used")
    parser.add_argument("--positives", type=int, default=6, help="answers kept per query (they have 43 on average)")
    parser.add_argument("--temperature", type=float, default=0.05, help="of the student")
    parser.add_argument("--reranked", type=int, default=20, help="candidates per query that the teacher ranks, to see how good it is")
    parser.add_argument("--split", default="test", choices=["test", "dev"], help="of the queries that everything is measured on")
    options = parser.parse_args()
    data, place, collection = str(options.data), options.output, read_collection(options.data)

    retriever = options.retriever or str(pretrained(data, options))
    evaluations = [scored("retriever", retriever, place / f"before-{options.split}", collection, options.split)]
    mined = place / "mined.jsonl"
    if not mined.is_file():
        config = MineConfig(rank_to=options.depth, negatives=options.negatives, choose="sample")
        groups, lines = mine_from([retriever], data, config)
        print("\n".join(lines))
        groups = smaller(groups, options.queries, options.positives)
        score(groups, options.teacher, options.max_len)
        write_groups(mined, groups)
    teacher = str(place / "teacher")
    training = {"steps": options.teacher_steps, "batch_size": 16, "micro_tokens": 4096, "optim": {"lr": options.teacher_lr}}
    train_reranker(check(RerankerConfig, {
        "data": str(mined), "output": teacher, "group_size": options.teacher_group, "encoder": {"start": options.teacher},
        "objective": {"max_len": options.teacher_len, "loss": "kl", "teacher_temperature": 0.05}, "training": training}))  # fmt: skip
    dtype = encoding_dtype("auto")
    reranked, first = place / f"reranked-{options.split}", place / f"before-{options.split}" / "run.trec"
    if not reranked.is_dir():
        score_candidates(teacher, data, str(reranked), run=str(first), k=options.reranked, split=options.split, dtype=dtype)
    again = evaluate(read_run(reranked / "run.trec")[0], collection, options.split, name=f"its first {options.reranked} by the teacher")
    print("\n".join(table([*evaluations, again], against=0)))
    if not (place / "scored").is_dir():
        print("\n".join(score_candidates(teacher, str(mined), str(place / "scored"), dtype=dtype)))
    names = {"hard negatives alone": {}, "distilled": {"distill": "kl"}}
    for name, objective in names.items():
        run = place / name.replace(" ", "-")
        objective = {"max_len": options.max_len, "temperature": options.temperature} | objective
        training = {"steps": options.steps, "batch_size": 16, "optim": {"lr": options.lr}}
        train_retriever(check(FinetuneConfig, {
            "data": str(place / "scored" / "groups.jsonl"), "output": str(run), "group_size": 8, "objective": objective,
            "encoder": {"start": retriever}, "training": training}))  # fmt: skip
        evaluations.append(scored(name, str(run), run / f"scores-{options.split}", collection, options.split))
    print("\n" + "\n".join(table(evaluations, against=0)))
    print("\n".join(table(evaluations[1:3], against=0)))


def pretrained(data: str, options: argparse.Namespace) -> Path:
    """A run folder: bert-tiny, which learned to tell crops of the documents from each other."""
    store, run = options.output / "store", options.output / "retriever"
    if not (store / "manifest.json").is_file():
        prepare([str(Path(data) / "corpus.jsonl")], store, vocab_size=8192, max_tokens=options.max_len - 2)
    if not (run / "export").is_dir():
        pretrain(check(PretrainConfig, {
            "store": str(store), "output": str(run), "encoder": {"start": "bert-tiny", "max_len": options.max_len},
            "objective": {"name": "contrastive", "temperature": options.temperature},
            "training": {"steps": options.pretrain_steps, "batch_size": 256, "optim": {"lr": 2e-3}}}))  # fmt: skip
    return run


def score(groups: Groups, model: str, max_len: int) -> None:
    """Puts the retriever's cosine of query and passage on every entry."""
    encoder = open_encoder(model)
    encoder.max_len = max_len
    names = list(groups.passages)
    place = {name: i for i, name in enumerate(names)}
    vectors = encoder.encode(list(groups.passages.values()), "document", show_progress=True)
    queries = encoder.encode([group.query for group in groups.groups], "query", show_progress=True)
    run: Run = {}
    for group, query in zip(groups.groups, queries):
        some = run.setdefault(group.query_id, {})
        some |= {entry.id: float(vectors[place[entry.id]] @ query) for entry in (*group.positives, *group.negatives)}
    apply_scores(groups, run)


def smaller(groups: Groups, queries: int, positives: int) -> Groups:
    """Some of the queries, evenly over all, with the first few of their answers; those without negatives are left out."""
    some = [group for group in groups.groups if group.negatives]
    some = some[:: max(1, len(some) // queries)][:queries]
    return replace(groups, groups=[replace(group, positives=group.positives[:positives]) for group in some])


def scored(name: str, model: str, folder: Path, collection: Collection, split: str) -> Evaluation:
    """The evaluation of a model, from its run file if it was made before."""
    if not (folder / "run.trec").is_file():
        evaluate(open_encoder(model), collection, split, name=name, show_progress=True).write(folder, overwrite=True)
    return evaluate(read_run(folder / "run.trec")[0], collection, split, name=name)


if __name__ == "__main__":
    main()
