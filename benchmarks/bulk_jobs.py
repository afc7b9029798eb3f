"""Whether bulk jobs on Ray give the files of the local engine, after a kill, and how much they overlap.

    python benchmarks/bulk_jobs.py --videos 500

Videos of MotionWorld are made, and some of them damaged. They are labelled by the local engine, and on a Ray
cluster of two nodes on this machine, whose command is killed (SIGKILL) when half of the parts are written and
then given again. The files of both are compared byte by byte, and the rows one by one. Two replicas of
``examples/ray_serve.py`` on the same cluster are then asked about some of the videos.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from fluxvit.checkpoints.checkpoint import DEFAULT_CHECKPOINT, Checkpoint
from fluxvit.deploy.bench import conditions
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.config import PRESETS
from fluxvit.models.fluxvit import create_model
from fluxvit.synthetic.motionworld import MakeMotionWorldConfig, make_motionworld


def damage(paths: list[Path], share: float) -> int:
    """Cut videos in half, empty them or fill them with text, in turns; returns their number."""
    count = round(share * len(paths))
    for number in range(count):
        path = paths[number * len(paths) // count]
        content = path.read_bytes()
        path.write_bytes((content[: len(content) // 2], b"", b"not a video")[number % 3])
    return count


def label(videos: Path, out: Path, *options: str, kill_at: int = 0) -> None:
    """Run ``fluxvit label``, and kill it when ``kill_at`` parts are there."""
    command = [
        sys.executable,
        "-m",
        "fluxvit",
        "label",
        str(videos),
        f"--out={out}",
        "--device=cpu",
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    start = time.perf_counter()
    while kill_at and process.poll() is None:
        if len(list(out.glob("rows/part-*.parquet"))) >= kill_at:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    text, _ = process.communicate()
    print(f"label {' '.join(options)}: exit code {process.returncode}, {time.perf_counter() - start:.1f} s")
    print("".join(f"    {line}\n" for line in text.splitlines()), end="")
    if kill_at:
        print(f"    killed with {len(list(out.glob('rows/*.parquet')))} parts written")


def compare(one: Path, other: Path) -> None:
    """Print whether two folders hold the same rows in the same files."""
    from pyarrow import parquet

    names = [
        sorted(path.relative_to(out) for path in out.rglob("*.*") if path.is_file()) for out in (one, other)
    ]
    same = sum((one / name).read_bytes() == (other / name).read_bytes() for name in names[0])
    print(f"{same} of {len(names[0])} files are equal to the last bit; names equal: {names[0] == names[1]}")
    for folder in ("rows", "damaged"):
        tables = [parquet.read_table(out / folder).to_pylist() for out in (one, other)]
        equal = sum(a == b for a, b in zip(*tables, strict=False))
        print(f"{folder}: {equal} of {len(tables[0])} and {len(tables[1])} rows are equal")


def compare_served(out: Path, address: str, requests: int, options: dict[str, str]) -> None:
    """Ask two replicas of ``examples/ray_serve.py`` about videos, and print how they differ from the rows."""
    import httpx
    import ray
    import ray_serve
    from pyarrow import parquet
    from ray import serve

    ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(ray_serve.build({**options, "replicas": "2", "decoders": "1", "device": "cpu"}))
    rows = parquet.read_table(out / "rows").to_pylist()[:requests]
    start = time.perf_counter()
    base, bodies = f"http://127.0.0.1:{port}", [{"path": row["path"], "top": 5} for row in rows]
    with httpx.Client(base_url=base, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: client.post("/v1/classify", json=body), bodies))
    seconds = time.perf_counter() - start
    best = [
        (answer.json()["labels"][0], row)
        for answer, row in zip(answers, rows, strict=True)
        if answer.status_code == 200
    ]
    alike = sum(served["label"] == row["label"] for served, row in best)
    gap = max(abs(served["score"] - row["score"]) for served, row in best)
    print(f"Ray Serve, two replicas: {len(best)} of {len(rows)} requests answered in {seconds:.1f} s;")
    print(f"    {alike} labels are those of the local engine, scores differ by at most {gap:.1g}")
    serve.shutdown()
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--damaged", type=float, default=0.03, help="share of damaged videos")
    parser.add_argument("--part", type=int, default=16)
    parser.add_argument("--cpus", type=int, default=2, help="CPUs of each node of the Ray cluster")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="or a size, with random weights")
    parser.add_argument("--budget", type=int, default=36)
    parser.add_argument("--kill", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--requests", type=int, default=100, help="requests to Ray Serve")
    parser.add_argument("--cache", type=Path, help="folder to keep the videos in")
    args = parser.parse_args()
    # Ray's processes import the example of the server.
    examples = str(Path(__file__).resolve().parents[1] / "examples")
    sys.path.append(examples)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), examples)))
    facts = conditions(torch.device("cpu"))
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        videos = (args.cache or folder) / "videos"
        if not videos.exists():
            make_motionworld(MakeMotionWorldConfig(out=str(videos), videos=args.videos, val=16, test=16))
            paths = sorted(videos.rglob("*.mp4"))
            for path in paths[args.videos :]:
                path.unlink()
            print(f"{args.videos} videos, {damage(paths[: args.videos], args.damaged)} of them damaged")
        checkpoint = args.checkpoint
        if checkpoint in PRESETS:
            torch.manual_seed(0)
            model = create_model(checkpoint, num_classes=16).eval()
            grids = [SamplingGrid(16, 112, 112)]
            checkpoint = str(Checkpoint(model, grids=grids).save(folder / checkpoint))
        options = [f"--part={args.part}", f"--checkpoint={checkpoint}", f"--budget={args.budget}"]
        label(videos, folder / "local", *options)
        half = args.videos // args.part // 2
        import ray
        from ray.cluster_utils import Cluster

        node = {"num_cpus": args.cpus, "object_store_memory": 250 << 20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.add_node(**node)
        print(f"Ray {ray.__version__}, two nodes of {args.cpus} CPUs")
        options += ["--engine=ray", f"--address={cluster.address}"]
        if args.kill:
            label(videos, folder / "ray", *options, kill_at=half)
        label(videos, folder / "ray", *options)
        compare(folder / "local", folder / "ray")
        if args.requests:
            serving = {"checkpoint": checkpoint, "budget": str(args.budget), "allow": str(videos.resolve())}
            compare_served(folder / "local", cluster.address, args.requests, serving)
        cluster.shutdown()


if __name__ == "__main__":
    main()
