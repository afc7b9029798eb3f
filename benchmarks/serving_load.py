"""Load, hostile uploads, damaged files and the end of a server: `fluxvit serve` under many clients.

    python benchmarks/serving_load.py                          # all parts, about five minutes
    python benchmarks/serving_load.py --parts damaged --cases FOLDER

The server is a process of its own. Clients send clips with random budgets, each over its own
connection, and ask again as soon as they have the answer. The parts:

load      one client, then many: answers a second, latency per budget, memory, and whether every answer is the
          one that the clip gets alone
uploads   over-long, slow and aborted uploads, and what they leave behind
damaged   videos with flipped, lost and false bytes, and the files of --cases
drain     SIGTERM in the middle of many requests
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from fluxvit.deploy.bench import conditions
from fluxvit.synthetic.motionworld.dataset import MakeMotionWorldConfig, make_motionworld
from running_server import Server, serving

UPLOADS = 32
"""Uploads of each kind at once."""

LOST = 0
"""The status of a request that got no answer."""

ALIKE = 0.02
"""Scores of a clip in a batch and alone differ by less; the blocks compute in bf16."""


class Reply(NamedTuple):
    """Status, headers in lower case, and body of an answer; the status is :data:`LOST` if there is none."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> dict:
        return json.loads(self.body)


class Connection:
    """A connection that is kept alive. Client libraries take as much processor time as the server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes, kind: str = "", path: str = "/v1/classify") -> Reply:
        """Send a request, and wait for the answer."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return await self.send(head.encode() + body)

    async def send(self, *pieces: bytes, pause: float = 0) -> Reply:
        """Send the pieces of a request with pauses between, until an answer comes."""
        try:
            if self.streams is None:
                self.streams = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self.streams
            answer = asyncio.ensure_future(_read_reply(reader))
            try:
                for piece in pieces:
                    if answer.done():
                        break
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(pause)
            except OSError:
                pass  # The server may answer and close before it has read everything.
            reply = await answer
        except (OSError, asyncio.IncompleteReadError):
            reply = Reply(LOST, {}, b"")
        if reply.status != 200 or reply.headers.get("connection") == "close":
            self.close()
        return reply

    def close(self) -> None:
        if self.streams:
            self.streams[1].transport.abort()
        self.streams = None


async def _read_reply(reader: asyncio.StreamReader) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
    body = await reader.readexactly(int(headers["content-length"]))
    return Reply(int(head[0].split()[1]), headers, body)


def form(video: bytes, **fields: str | float) -> tuple[bytes, str]:
    """The body and the type of a form with a video."""
    lines = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    head = '--x\r\nContent-Disposition: form-data; name="video"; filename="clip.mp4"\r\n\r\n'
    body = "".join([*lines, head]).encode() + video + b"\r\n--x--\r\n"
    return body, "multipart/form-data; boundary=x"


def videos(folder: str | None, count: int = 16) -> list[bytes]:
    """The first videos of a folder, or drawn ones of MotionWorld."""
    if folder:
        return [path.read_bytes() for path in sorted(Path(folder).rglob("*.mp4"))[:count]]
    with tempfile.TemporaryDirectory() as drawn:
        make_motionworld(MakeMotionWorldConfig(out=f"{drawn}/clips", videos=count, workers=1))
        return videos(drawn, count)


OPTIONS = {"uploads": ("--max_bytes", "4000000", "--upload", "8")}
"""Options of the server for parts that would take long without."""


# --- load ---------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """What clients got: the seconds of the answers of each budget, and the number of each status."""

    seconds: float
    times: dict[str, list[float]]
    statuses: Counter[int] = field(default_factory=Counter)
    different: int = 0
    memory: list[float] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return self.statuses[200]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds


def expected_scores(server: Server, clips: Sequence[bytes], budgets: Sequence[str]) -> dict:
    """The scores of each clip and budget when the server has nothing else to do."""

    async def ask_all() -> dict:
        connection, scores = Connection(server.port), {}
        for number, clip in enumerate(clips):
            for budget in budgets:
                reply = await connection.ask(*form(clip, budget=budget, top=1000))
                if reply.status != 200:
                    raise SystemExit(f"clip {number}, budget {budget}: {reply.status} {reply.body!r}")
                scores[number, budget] = _scores(reply)
        connection.close()
        return scores

    return asyncio.run(ask_all())


def _scores(reply: Reply) -> dict[str, float]:
    return {row["label"]: row["score"] for row in reply.content["labels"]}


def load(
    server: Server,
    clips: Sequence[bytes],
    budgets: Sequence[str],
    expected: dict,
    clients: int,
    seconds: float,
) -> Load:
    """Requests of ``clients`` at once for so many seconds; one that is refused waits as it is told."""
    result = Load(seconds, {budget: [] for budget in budgets})
    bodies = {
        (number, budget): form(clip, budget=budget, top=1000)
        for number, clip in enumerate(clips)
        for budget in budgets
    }
    start = time.perf_counter()

    async def client(seed: int) -> None:
        rng, connection = random.Random(seed), Connection(server.port)
        while time.perf_counter() < start + seconds:
            asked = rng.choice([*bodies])
            began = time.perf_counter()
            reply = await connection.ask(*bodies[asked])
            result.statuses[reply.status] += 1
            if reply.status == 200:
                result.times[asked[1]].append(time.perf_counter() - began)
                scores = _scores(reply)
                result.different += any(abs(scores[name] - p) > ALIKE for name, p in expected[asked].items())
            elif reply.status == 429:
                await asyncio.sleep(float(reply.headers["retry-after"]) * rng.uniform(0.5, 1))
        connection.close()

    async def watch() -> None:
        while time.perf_counter() < start + seconds:
            result.memory.append(sum(server.memory.values()))
            await asyncio.sleep(seconds / 20)

    async def run() -> None:
        await asyncio.gather(watch(), *map(client, range(clients)))

    asyncio.run(run())
    result.seconds = time.perf_counter() - start
    return result


def show_load(server: Server, clips: Sequence[bytes], args: argparse.Namespace) -> None:
    expected = expected_scores(server, clips, args.budgets)
    alone = load(server, clips, args.budgets, expected, 1, args.seconds / 12)
    many = load(server, clips, args.budgets, expected, args.clients, args.seconds)
    for name, result in (("1 client", alone), (f"{args.clients} clients", many)):
        statuses = {status or "lost": count for status, count in sorted(result.statuses.items())}
        print(
            f"{name}, {result.seconds:.0f} s: {result.rate:.1f} answers/s; statuses {statuses}; "
            f"{result.statuses[LOST]} lost, {result.different} unlike the clip's own"
        )
        for budget, times in result.times.items():
            if times:
                p50, p99 = (1000 * np.percentile(times, q) for q in (50, 99))
                print(f"  {budget:>10}: {len(times):>6} answers, p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    batches = dict(line.split() for line in server.get("/metrics").decode().splitlines() if line[:1] != "#")
    passes, requests = (float(batches[f"fluxvit_batch_requests_{name}"]) for name in ("count", "sum"))
    print(f"{requests / passes:.1f} requests in a pass of the network")
    print(f"throughput: {many.rate / alone.rate:.2f} times that of one client")
    print("memory, MB: " + " ".join(f"{mb:.0f}" for mb in many.memory))
    fourth = len(many.memory) // 4
    print(f"  {median(many.memory[fourth : 2 * fourth]):.0f} in the second quarter of the time, ", end="")
    print(f"{median(many.memory[-fourth:]):.0f} in the last")


# --- uploads ------------------------------------------------------------------------------------------------


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def uploads(server: Server, clip: bytes, limit: int, count: int) -> dict[str, Counter[int]]:
    """Statuses of ``count`` uploads of each kind, all at once; ``limit`` is that of the server, in bytes."""
    body, kind = form(clip)
    start = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    prefix, mb = body[: -len(clip)], bytes(1 << 20)
    over = [prefix, *[mb] * (limit // len(mb) + 2)]
    declared = f"{start}Content-Length: {sum(map(len, over))}\r\n\r\n".encode()
    chunked = f"{start}Transfer-Encoding: chunked\r\n\r\n".encode()
    ordinary = f"{start}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def left(request: bytes, longest: float, seed: int) -> Reply:
        """Leave after a random time, and come again with a whole request."""
        connection = Connection(server.port)
        sending = asyncio.ensure_future(connection.send(request))
        await asyncio.sleep(random.Random(seed).uniform(0, longest))
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        connection.close()
        return await Connection(server.port).send(ordinary)

    kinds: dict[str, Callable[[int], Awaitable[Reply]]] = {
        "too long, declared": lambda _: Connection(server.port).send(declared, *over),
        "too long, in chunks": lambda _: Connection(server.port).send(chunked, *map(_chunk, [*over, b""])),
        "slow": lambda _: Connection(server.port).send(
            *(ordinary[at : at + 64] for at in range(0, len(ordinary) - 64, 64)), pause=0.25
        ),
        "aborted, then one more": partial(left, ordinary[:-1], 0.5),
        "gone before the answer, then one more": partial(left, ordinary, 0.05),
    }

    async def run(kind: Callable[[int], Awaitable[Reply]]) -> Counter[int]:
        replies = await asyncio.gather(*map(kind, range(count)))
        return Counter(reply.status for reply in replies)

    return {name: asyncio.run(run(kind)) for name, kind in kinds.items()}


def show_uploads(server: Server, clips: Sequence[bytes], args: argparse.Namespace) -> None:
    clip = clips[0]
    limit = json.loads(server.get("/v1/model"))["limits"]["bytes"]
    uploads(server, clip, limit, UPLOADS)
    before, memory = server.leftovers, sum(server.memory.values())
    for name, statuses in uploads(server, clip, limit, UPLOADS).items():
        print(f"uploads {name}: {dict(statuses)}")
    time.sleep(3)
    print(
        f"  open files {before[0]}, then {server.leftovers[0]}; temporary files {before[1]}, then "
        f"{server.leftovers[1]}; memory {memory:.0f} MB, then {sum(server.memory.values()):.0f} MB"
    )


# --- damaged ------------------------------------------------------------------------------------------------


def damaged_copy(data: bytes, rng: random.Random) -> bytes:
    """A file with flipped bits, a part lost, doubled or overwritten, or a false number in its index."""
    changed, at = bytearray(data), rng.randrange(len(data))
    size = rng.randint(1, 2000)
    match rng.randrange(6):
        case 0:
            for _ in range(rng.randint(1, 20)):
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del changed[at:]
        case 2:
            del changed[at : at + size]
        case 3:
            changed[at:at] = changed[at : at + size]
        case 4:
            changed[at : at + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
        case 5:
            names = [b"moov", b"stts", b"stsz", b"stsc", b"stco", b"mvhd", b"mdhd", b"tkhd", b"avcC"]
            at = max(0, data.find(rng.choice(names)) + rng.choice((-4, 4, 8, 12)))
            changed[at : at + 4] = rng.choice((bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", rng.randbytes(4)))
    return bytes(changed)


def send_damaged(
    server: Server, clips: Sequence[bytes], count: int, cases: Sequence[bytes] = (), clients: int = 8
) -> tuple[Counter[int], float]:
    """Statuses of damaged videos, and the longest time to an answer in seconds."""
    files = iter(
        [*cases, *(damaged_copy(clips[n % len(clips)], random.Random(n)) for n in range(count - len(cases)))]
    )
    statuses: Counter[int] = Counter()
    longest = 0.0

    async def client() -> None:
        nonlocal longest
        for data in files:
            start = time.perf_counter()
            reply = await Connection(server.port).ask(*form(data))
            statuses[reply.status] += 1
            longest = max(longest, time.perf_counter() - start)
            if reply.status not in (200, LOST):
                assert "\n" not in reply.content["error"]["message"], reply.body

    async def run() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    asyncio.run(run())
    return statuses, longest


def show_damaged(server: Server, clips: Sequence[bytes], args: argparse.Namespace) -> None:
    cases = (
        [path.read_bytes() for path in sorted(Path(args.cases).rglob("*")) if path.is_file()]
        if args.cases
        else []
    )
    send_damaged(server, clips, 50)
    before, memory = server.leftovers, server.memory
    statuses, longest = send_damaged(server, clips, args.damaged, cases)
    after = server.memory
    print(f"damaged files: {statuses.total()} sent, {len(cases)} of them from --cases; {dict(statuses)}")
    print(
        f"  longest answer {longest:.1f} s; memory {sum(memory.values()):.0f} MB, then "
        f"{sum(after.values()):.0f} MB; {len(set(after) - set(memory))} processes are new; open files "
        f"{before[0]}, then {server.leftovers[0]}; temporary files {server.leftovers[1]}"
    )
    reply = asyncio.run(Connection(server.port).ask(*form(clips[0])))
    print(f"  a whole video afterwards: {reply.status}")


# --- drain --------------------------------------------------------------------------------------------------


@dataclass
class Drain:
    """Statuses of the requests that were sent before and after SIGTERM, and the end of the server."""

    before: Counter[int]
    after: Counter[int]
    code: int
    seconds: float


def drain(server: Server, clips: Sequence[bytes], requests: int) -> Drain:
    """Stop a server while it works on many requests."""

    async def run() -> tuple[Counter[int], Counter[int], float]:
        bodies = [form(clip) for clip in clips]
        first = [
            asyncio.ensure_future(Connection(server.port).ask(*bodies[n % len(bodies)]))
            for n in range(requests)
        ]
        while sum(task.done() for task in first) < requests / 10:
            await asyncio.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        start = time.perf_counter()
        later = []
        for n in range(20):
            later.append(await Connection(server.port).ask(*bodies[n % len(bodies)]))
            await asyncio.sleep(0.02)
        statuses = Counter(reply.status for reply in await asyncio.gather(*first))
        return statuses, Counter(reply.status for reply in later), start

    before, after, start = asyncio.run(run())
    code = server.process.wait(60)
    return Drain(before, after, code, time.perf_counter() - start)


def show_drain(server: Server, clips: Sequence[bytes], args: argparse.Namespace) -> None:
    result = drain(server, clips, args.clients)
    print(
        f"SIGTERM with {args.clients} requests under way: {dict(result.before)}; {result.before[LOST]} lost; "
        f"sent after it: {dict(result.after)} (0: no connection); exit code {result.code} after "
        f"{result.seconds:.1f} s"
    )


PARTS: dict[str, Callable[[Server, Sequence[bytes], argparse.Namespace], None]] = {
    "load": show_load,
    "uploads": show_uploads,
    "damaged": show_damaged,
    "drain": show_drain,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="fluxvit_nano_motionworld")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--budgets", nargs="+", default=["18", "36", "72", "0.03gflops"])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--damaged", type=int, default=2000)
    parser.add_argument("--cases", help="folder of more damaged files")
    parser.add_argument("--videos", help="folder with .mp4 files to send; drawn ones by default")
    args = parser.parse_args()
    clips = videos(args.videos)
    print(", ".join(f"{name} {value}" for name, value in conditions(torch.device("cpu")).items()))
    for part in args.parts:
        with serving(args.checkpoint, *OPTIONS.get(part, ())) as server:
            PARTS[part](server, clips, args)


if __name__ == "__main__":
    main()
