"""``fluxvit data``."""

from __future__ import annotations

from fluxvit.cli.parser import Parser, values


def run(argv: list[str]) -> int:
    usage = "usage: fluxvit data make motionworld OUT ...\n\nfluxvit data make motionworld --help tells more."
    if argv[:2] == ["make", "motionworld"]:
        return _run_motionworld(argv[2:])
    if not argv or argv[0] in ("-h", "--help") or argv[1:2] in (["-h"], ["--help"]):
        print(usage)
        return 0
    raise ValueError(f"data {' '.join(argv[:2])}: unknown; there is: fluxvit data make motionworld OUT")


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
    from fluxvit.data.motionworld import MotionWorldConfig, make_motionworld

    chosen = {} if factors is None else {"factors": tuple(factors.split(","))}
    config = MotionWorldConfig(videos, seed, difficulty, val=val, test=test, **chosen)
    print(f"wrote {make_motionworld(out, config, workers=workers)}")
    return 0
