"""``fluxvit data``."""

from __future__ import annotations

from fluxvit.cli.parser import Parser, values
from fluxvit.terminal import say


def run(argv: list[str]) -> int:
    usage = (
        "usage: fluxvit data probe SOURCE --out MANIFEST ...\n"
        "       fluxvit data shard MANIFEST OUT --size 1GB ...\n"
        "       fluxvit data make motionworld|metaworld|mocap OUT ...\n\n"
        "fluxvit data probe --help and fluxvit data make motionworld --help tell more."
    )
    if argv[:1] == ["probe"]:
        return _run_probe(argv[1:])
    if argv[:1] == ["shard"]:
        return _run_shard(argv[1:])
    if argv[:2] == ["make", "motionworld"]:
        return _run_motionworld(argv[2:])
    if argv[:1] == ["make"] and argv[1:2] in (["metaworld"], ["mocap"]):
        return _run_simulated(argv[1], argv[2:])
    if not argv or argv[0] in ("-h", "--help") or argv[1:2] in (["-h"], ["--help"]):
        say(usage)
        return 0
    known = (
        "fluxvit data probe SOURCE, fluxvit data shard MANIFEST OUT, "
        "fluxvit data make motionworld|metaworld|mocap OUT"
    )
    raise ValueError(f"data {' '.join(argv[:2])}: unknown; there is: {known}")


def _run_motionworld(argv: list[str]) -> int:
    parser = Parser(
        "data make motionworld", "Make MotionWorld, a data set of videos that only motion can tell."
    )
    add = parser.add_argument
    add("out", help="folder to write; an interrupted run goes on where it stopped")
    add("--videos", type=int, default=1000, help="training videos")
    add("--val", type=int, help="validation videos; default: a tenth of --videos")
    add("--test", type=int, help="test videos; default: a tenth of --videos")
    add("--seed", type=int, default=0, help="another seed gives other videos")
    add("--difficulty", default="easy", help="demo, easy, medium or hard")
    add("--factors", help="what the label tells, such as slide,lift,depth,order; default: these")
    add("--workers", type=int, help="processes; default: one per core")
    return _make_motionworld(**values(parser, argv))


def _make_motionworld(
    out: str,
    videos: int,
    val: int | None,
    test: int | None,
    seed: int,
    difficulty: str,
    factors: str | None,
    workers: int | None,
) -> int:
    from fluxvit.data.making import make_dataset
    from fluxvit.data.motionworld import MotionWorldConfig

    chosen = {} if factors is None else {"factors": tuple(factors.split(","))}
    config = MotionWorldConfig(videos, seed, difficulty, val=val, test=test, **chosen)
    say(f"wrote {make_dataset(out, config, workers=workers)}")
    return 0


def _run_simulated(name: str, argv: list[str]) -> int:
    what = {
        "metaworld": "Make 50 manipulations by a robot arm; needs pip install 'fluxvit[metaworld]'.",
        "mocap": "Make 15 human actions, split by viewpoint; needs pip install 'fluxvit[mocap]'.",
    }
    parser = Parser(f"data make {name}", what[name])
    add = parser.add_argument
    add("out", help="folder to write; an interrupted run goes on where it stopped")
    add("--videos", type=int, default=1000, help="training videos")
    add("--val", type=int, help="validation videos; default: a tenth of --videos")
    add("--test", type=int, help="test videos; default: a tenth of --videos")
    add("--seed", type=int, default=0, help="another seed gives other videos")
    add("--short_sides", default="128,160,192", help="pixels; each video has one of them")
    add("--workers", type=int, help="processes; default: one per core")
    return _make_simulated(name, **values(parser, argv))


def _make_simulated(
    name: str,
    out: str,
    videos: int,
    val: int | None,
    test: int | None,
    seed: int,
    short_sides: str,
    workers: int | None,
) -> int:
    from fluxvit.data import simulated
    from fluxvit.data.making import make_dataset

    try:
        sides = tuple(int(side) for side in short_sides.split(","))
    except ValueError:
        raise ValueError(f"--short_sides {short_sides!r}: give whole numbers, such as 128,160") from None
    kind = {"metaworld": simulated.MetaworldConfig, "mocap": simulated.MocapConfig}[name]
    say(f"wrote {make_dataset(out, kind(videos, seed, sides, val=val, test=test), workers=workers)}")
    return 0


def _run_probe(argv: list[str]) -> int:
    parser = Parser(
        "data probe",
        "Check every video of a data set and write a manifest: what is there, what is broken and why. An "
        "interrupted check goes on where it stopped. Formats and their layout on disk: docs/data.md.",
    )
    add = parser.add_argument
    add("source", help="what the data set ships: a list, an annotation file, or a folder")
    add("--out", required=True, help="manifest to write, such as data/k400-train.jsonl")
    add("--format", default="auto", help="such as folder, csv, kinetics, ssv2; default: recognised")
    add("--root", help="folder of the videos; default: that of the source")
    add("--split", help="train, val or test; default: what the name of the source says")
    add("--labels", help="file of class names, one a line or with indices; names and numbers the classes")
    add("--like", help="manifest or checkpoint folder: name and number the classes as it does")
    add(
        "--columns",
        help="columns of a CSV file, by name or number, such as path=video,label=3; default: recognised",
    )
    add("--deep", action="store_true", help="decode every frame")
    add("--workers", type=int, help="processes; default: one per core")
    add("--time_limit", type=float, help="seconds for one file; default: 60, with --deep 600")
    return _probe(**values(parser, argv))


def _probe(
    source: str,
    out: str,
    format: str,
    root: str | None,
    split: str | None,
    labels: str | None,
    like: str | None,
    columns: str | None,
    deep: bool,
    workers: int | None,
    time_limit: float | None,
) -> int:
    from fluxvit.data.probe import probe_manifest
    from fluxvit.data.sources import read_source

    chosen = None if columns is None else _columns(columns)
    videos = read_source(source, format, root, split, labels, like, chosen)
    recognised = "recognised as" if format == "auto" else "read as"
    part = f" {videos.split}" if videos.split else ""
    say(f"{source}: {recognised} {videos.name}{part}, {len(videos.entries)} videos", error=True)
    for note in videos.notes:
        say(f"fluxvit: {note}", error=True)
    say(probe_manifest(videos, out, workers, deep=deep, time_limit=time_limit))
    say(f"wrote {out}")
    return 0


def _columns(text: str) -> dict[str, str]:
    parts = [part.partition("=") for part in text.split(",")]
    if not all(role.strip() and name.strip() for role, _, name in parts):
        raise ValueError(f"--columns {text!r}: give names of columns, such as path=video,label=class")
    return {role.strip(): name.strip() for role, _, name in parts}


def _run_shard(argv: list[str]) -> int:
    parser = Parser(
        "data shard",
        "Pack the readable videos of a manifest into tar files, as they are, and write the manifest that "
        "reads them. An interrupted run goes on where it stopped. More: docs/data.md.",
    )
    add = parser.add_argument
    add("manifest", help="a manifest, as fluxvit data probe writes it")
    add("out", help="folder of the shards and of their manifest, which keeps its name")
    add("--size", default="1GB", help="of a shard, such as 500MB or 2GB")
    add("--max_videos", type=int, help="most videos in a shard")
    add("--url", help="where the shards will be read from, such as s3://bucket/k400; default: OUT")
    return _shard(**values(parser, argv))


def _shard(manifest: str, out: str, size: str, max_videos: int | None, url: str | None) -> int:
    from pathlib import Path

    from fluxvit.data.manifest import read_manifest
    from fluxvit.data.shards import write_shards

    videos = read_manifest(manifest, target=None)
    if Path(out).resolve() == Path(manifest).resolve().parent:
        raise ValueError(f"{out}: {manifest} lies there and would be replaced; choose another folder")
    say(write_shards(videos, out, Path(manifest).stem, _bytes(size), max_videos=max_videos, url=url))
    return 0


def _bytes(size: str) -> int:
    from fluxvit.data.shards import MAX_BYTES
    from fluxvit.schema import shown

    number, unit = size.strip().upper().removesuffix("B"), 1.0
    if number[-1:] in tuple("KMGT"):
        number, unit = number[:-1], 1000.0 ** (1 + "KMGT".index(number[-1]))
    try:
        count = int(float(number) * unit)
    except (ValueError, OverflowError):
        count = 0
    if not 1 <= count <= MAX_BYTES:
        raise ValueError(f"--size {shown(size)}: give a positive number of bytes, such as 500MB or 2GB")
    return count
