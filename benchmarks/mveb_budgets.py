"""What accuracy a checkpoint has in mteb, and thereby in MVEB, at several token budgets, on a tiny task.

    fluxvit data make motionworld data/mw --videos 480 --val 16 --test 320 --difficulty demo --seed 11
    python benchmarks/mveb_budgets.py fluxvit_nano_motionworld --data data/mw --budgets 72,36,18,9

The task has the form of MVEB's: a data set with a column of videos, which ``mteb.evaluate`` scores. Videos
are classified by mteb's logistic regression on the embeddings of eight videos of each class, in ten draws.
With a dual encoder they are also found by their captions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fluxvit.data.manifest import read_manifest
from fluxvit.deploy.bench import conditions
from fluxvit.flux.cost import grid_cost


def motionworld_tasks(folder: Path, *, with_texts: bool) -> list[Any]:
    """Tasks of mteb over a MotionWorld: classification by motion and, with texts, retrieval by captions."""
    from datasets import Dataset, DatasetDict, Features, Value, Video
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    entries = {split: read_manifest(folder / f"{split}.jsonl").entries for split in ("train", "test")}

    def dataset(split: str, column: str, values: list[Any]) -> Any:
        # The bytes of the files, as in the Parquet files of MVEB.
        videos = [{"bytes": entry.path.read_bytes(), "path": entry.path.name} for entry in entries[split]]
        kind = Value("int64" if column == "label" else "string")
        features = Features({"video": Video(), column: kind})
        return Dataset.from_dict({"video": videos, column: values}, features=features)

    def facts(name: str, **values: Any) -> Any:
        source: Any = {"path": "fluxvit/motionworld", "revision": read_manifest(folder / "test.jsonl").digest}
        return TaskMetadata(name=name, description=name, dataset=source, eval_langs=["eng-Latn"], **values)

    class Classification(AbsTaskClassification):
        metadata = facts(
            "MotionWorldClassification",
            type="VideoClassification",
            category="v2c",
            modalities=["video"],
            main_score="accuracy",
        )
        input_column_name = "video"

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            labels = {split: [entry.label for entry in rows] for split, rows in entries.items()}
            self.dataset = DatasetDict({split: dataset(split, "label", labels[split]) for split in labels})
            self.data_loaded = True

    class Retrieval(AbsTaskRetrieval):
        metadata = facts(
            "MotionWorldT2VRetrieval",
            type="Any2AnyRetrieval",
            category="t2v",
            modalities=["text", "video"],
            main_score="ndcg_at_10",
        )

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            names = [entry.path.stem for entry in entries["test"]]
            captions = [(caption, entry.path.stem) for entry in entries["test"] for caption in entry.captions]
            queries = {"id": [f"q{i}" for i in range(len(captions))], "text": [text for text, _ in captions]}
            relevant = {query: {name: 1} for query, (_, name) in zip(queries["id"], captions, strict=True)}
            data = RetrievalSplitData(
                corpus=dataset("test", "id", names),
                queries=Dataset.from_dict(queries),
                relevant_docs=relevant,
                top_ranked=None,
            )
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

    return [Classification(), Retrieval()] if with_texts else [Classification()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint")
    add("--data", type=Path, required=True, help="folder of a MotionWorld")
    add("--budgets", default="72,36,18,9", help="numbers of tokens")
    add("--device", help="device to run on; by default the accelerator, or the CPU if there is none")
    args = parser.parse_args()
    import mteb

    from fluxvit.hf.mteb import MTEBEncoder

    print(f"mteb {mteb.__version__}")
    for number, budget in enumerate(map(int, args.budgets.split(","))):
        encoder: Any = MTEBEncoder(args.checkpoint, budget, device=args.device)
        plan, video = encoder.plan, encoder.video
        tasks = motionworld_tasks(args.data, with_texts=encoder.dual is not None)
        if not number:
            print(", ".join(f"{name} {value}" for name, value in conditions(video.device).items()))
            names = "".join(f"{task.metadata.name:>28}" for task in tasks)
            print(f"{'tokens':>6} {'grid':>8} {'pool':>5} {'GMACs':>7}{names}")
        results = mteb.evaluate(encoder, tasks, cache=None, show_progress_bar=False)
        gmacs = grid_cost(video.model.config.size, plan.grid, plan.keep, plan.selector).total / 1e9
        scores = "".join(f"{100 * result.get_score():>26.1f} %" for result in results.task_results)
        print(f"{plan.keep:>6} {plan.grid!s:>8} {video.pool(plan.grid):>5} {gmacs:>7.3f}{scores}", flush=True)


if __name__ == "__main__":
    main()
