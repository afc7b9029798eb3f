"""Videos packed into tar files of about one size, for storage that dislikes many small files.

Next to each video lies a ``.json`` of the same name with what its manifest says: the layout of WebDataset, so
that others can stream the shards in order. fluxvit itself reads them by byte range, through a manifest whose
paths say where in which shard a video is (see `fluxvit.video.tar_members`): any order, exact resuming and
validation are as with files. The bytes are those of the files.
"""

from __future__ import annotations

import errno
import glob
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated

from msgspec import Meta

from fluxvit.data.config import ShardConfig
from fluxvit.data.manifest import Entry, Manifest, content_digest, read_manifest, to_record, write_manifest
from fluxvit.utils.files import atomic_path, lock_file
from fluxvit.utils.progress import report
from fluxvit.utils.schema import convert, plain, shown
from fluxvit.utils.terminal import printable
from fluxvit.video.tar_members import TarMember, is_url

_BLOCK = 512
MAX_BYTES = 1 << 60
"""Largest size that a shard may be given."""
_Bytes = Annotated[int, Meta(ge=1, le=MAX_BYTES)]


@dataclass(frozen=True)
class ShardSummary:
    """What was written. Its text is what the command prints.

    Attributes:
        manifest: The file of the new manifest.
        videos: Files in the shards.
        shards: Paths of the shards.
        kept: Number of shards that an earlier run had written.
        size: Bytes of the shards.
        left_out: Reasons by video, for videos that are not in the shards.
        digest: Digest of the new manifest. It equals the old one's if no readable video was left out.
    """

    manifest: Path
    videos: int
    shards: tuple[Path, ...]
    kept: int
    size: int
    left_out: dict[Path, str]
    digest: str

    def __str__(self) -> str:
        kept = f" ({self.kept} of them were there)" if self.kept else ""
        lines = [
            f"{self.videos} videos in {len(self.shards)} shards{kept}, {self.size / 1e9:.3f} GB; "
            f"digest {self.digest}"
        ]
        lines += [
            f"left out: {printable(path)}: {printable(reason)}" for path, reason in self.left_out.items()
        ]
        return "\n".join([*lines, f"wrote {self.manifest}"])


@dataclass(frozen=True)
class _Sample:
    """A video that goes into a shard: ``key``.suffix, and ``key``.json with what its manifest says."""

    path: Path
    key: str
    size: int
    facts: bytes

    @property
    def member(self) -> str:
        member = TarMember.parse(self.path)
        suffix = Path(self.path.name if member is None else member.name).suffix.lower()
        # WebDataset takes the name up to the first dot for the key, and needs something behind it.
        return f"{self.key}{suffix if suffix.isascii() and len(suffix) > 1 else '.video'}"

    def open(self) -> IO[bytes]:
        member = TarMember.parse(self.path)
        return self.path.open("rb") if member is None else member.open()

    def changed(self) -> int:
        """When its file was last changed, in nanoseconds since 1970."""
        member = TarMember.parse(self.path)
        if member is not None and is_url(member.tar):
            return 0  # Servers need not tell.
        facts = os.stat(self.path if member is None else member.tar)
        # The time of the content can be set back, as copying does; that of the entry cannot.
        return max(facts.st_mtime_ns, facts.st_ctime_ns)

    def total(self) -> int:
        """Bytes in the tar, with headers."""
        return sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in (self.size, len(self.facts)))


def shard_manifest(config: ShardConfig) -> ShardSummary:
    """Pack the readable videos of a manifest into tar files.

    Raises:
        ValueError: The manifest cannot be read or would be replaced, or the size is not one.
    """
    videos = read_manifest(config.manifest, target=None)
    source, out = Path(config.manifest), Path(config.out)
    if out.resolve() == source.resolve().parent:
        raise ValueError(f"{out}: {source} lies there and would be replaced; choose another folder")
    size = _bytes(config.size)
    return write_shards(videos, out, source.stem, size, url=config.url)


def _bytes(size: str) -> int:
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


def write_shards(
    manifest: Manifest,
    out: str | Path,
    name: str,
    max_bytes: int,
    *,
    url: str | None = None,
    progress: bool = True,
) -> ShardSummary:
    """Pack the readable videos of a manifest into ``out/<name>-000000.tar`` and so on, in its order.

    Shards appear when they are complete; after an interruption the same call keeps those and goes on. A shard
    is written anew if a video in it has changed since. The manifest, ``out/<name>.jsonl``, comes last. Videos
    that are known to be broken, and what is missing, empty or a folder of images, are left out of the shards;
    they stay in the manifest as broken.

    Args:
        max_bytes: Size of a shard, which only a single larger video exceeds.
        url: The address that the shards will be read from, such as ``s3://bucket/k400``; default: the folder
            of the manifest, so that all can be moved together.

    Raises:
        ValueError: No video can be packed, the folder holds shards of this name that differ, or another run
            is writing them.
        OSError: A file cannot be read or written, or has changed while it was packed.
    """
    max_bytes = convert(plain(max_bytes), _Bytes, key="max_bytes")
    out = Path(out).absolute()
    with lock_file(out / f"{name}.jsonl"):
        samples, left_out = _samples(manifest)
        if not samples:
            path, reason = next(iter(left_out.items()))
            raise ValueError(
                f"none of the {len(left_out)} videos can be packed, such as {printable(path)}: {reason}"
            )
        plan = {
            out / f"{name}-{number:06d}.tar": part for number, part in enumerate(_parts(samples, max_bytes))
        }
        stray = sorted(set(out.glob(f"{glob.escape(name)}-{'[0-9]' * 6}.tar")) - set(plan))
        if stray:
            raise _differs(stray[0])
        members: dict[Path, TarMember] = {}
        kept = 0
        with report("Packing videos", len(samples), enabled=progress) as advance:
            for path, part in plan.items():
                found = _members(path, part) if path.exists() else []
                if found and all(
                    member.size == sample.size and sample.changed() < path.stat().st_mtime_ns
                    for sample, member in zip(part, found, strict=True)
                ):
                    kept += 1
                else:
                    _write_shard(path, part)
                    found = _members(path, part)
                members |= {sample.path: member for sample, member in zip(part, found, strict=True)}
                advance(len(part))
        root = out if url is None else Path(url)
        entries = tuple(
            _packed(entry, manifest.root, root, members.get(entry.path), left_out)
            for entry in manifest.entries
        )
        digest = content_digest(entries, root)
        file = out / f"{name}.jsonl"
        write_manifest(file, replace(manifest, entries=entries, digest=digest, root=root))
        size = sum(path.stat().st_size for path in plan)
        return ShardSummary(file, len(samples), tuple(plan), kept, size, left_out, digest)


def _samples(manifest: Manifest) -> tuple[list[_Sample], dict[Path, str]]:
    """Every file of a manifest once, and what is left out with the reason."""
    entries: dict[Path, list[Entry]] = {}
    numbers: dict[Path, int] = {}
    left_out: dict[Path, str] = {}
    for number, entry in enumerate(manifest.entries):
        if not entry.ok:
            left_out.setdefault(entry.path, entry.error or "broken")
            continue
        entries.setdefault(entry.path, []).append(entry)
        numbers.setdefault(entry.path, number)
    samples = []
    for path, parts in entries.items():
        size, fault = _size(path)
        if fault is None:
            samples.append(_Sample(path, f"{numbers[path]:08d}", size, _facts(parts, manifest)))
        else:
            left_out[path] = fault
    return samples, left_out


def _size(path: Path) -> tuple[int, str | None]:
    """Bytes of a video, and why it cannot be packed."""
    member = TarMember.parse(path)
    if member is not None:
        return member.size, None
    if path.is_dir():
        return 0, "a folder of images; only files go into shards"
    if not path.is_file():
        return 0, "missing"
    size = path.stat().st_size
    return size, None if size else "the file is empty (0 bytes)"


def _facts(parts: list[Entry], manifest: Manifest) -> bytes:
    """What the manifest says about a file, as JSON; for several segments a list of them."""
    records = []
    for entry in parts:
        record = to_record(entry, manifest.root)
        record["path"] = record.pop("original", record["path"])
        if manifest.labels and entry.label >= 0:
            record["class"] = manifest.labels[entry.label]
        if manifest.labels and entry.labels is not None:
            record["classes"] = [manifest.labels[number] for number in entry.labels]
        records.append(record)
    facts = records[0] if len(records) == 1 else {"path": records[0]["path"], "segments": records}
    return json.dumps(facts, ensure_ascii=False).encode(errors="backslashreplace")


def _parts(samples: list[_Sample], max_bytes: int) -> Iterator[list[_Sample]]:
    """Consecutive samples that go into one shard."""
    part: list[_Sample] = []
    # A tar ends with two empty blocks, and is filled up to full records.
    room = left = max_bytes - 2 * _BLOCK - tarfile.RECORDSIZE
    for sample in samples:
        size = sample.total()
        if part and size > left:
            yield part
            part, left = [], room
        part.append(sample)
        left -= size
    yield part


def _write_shard(path: Path, samples: list[_Sample]) -> None:
    with atomic_path(path) as partial, tarfile.open(partial, "w") as tar:
        for sample in samples:
            before, is_complete = sample.changed(), True
            try:
                with sample.open() as file:
                    tar.addfile(_header(sample.member, sample.size), file)
            except OSError as error:
                if error.errno is not None:
                    raise
                is_complete = False  # tarfile's error for a file that has become shorter.
            if not is_complete or sample.changed() != before:
                reason = "it has changed while it was packed; run the command again"
                raise OSError(errno.EAGAIN, reason, str(sample.path))
            tar.addfile(_header(f"{sample.key}.json", len(sample.facts)), io.BytesIO(sample.facts))


def _header(name: str, size: int) -> tarfile.TarInfo:
    # No time and no owner: the same videos make the same bytes.
    header = tarfile.TarInfo(name)
    header.size = size
    return header


def _members(path: Path, samples: list[_Sample]) -> list[TarMember]:
    """The place of each sample in a shard.

    Raises:
        ValueError: The shard holds something else, or is damaged.
    """
    found = []
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            expected = [name for sample in samples for name in (sample.member, f"{sample.key}.json")]
            names = [member.name for member in members]
            if names != expected:
                if names == expected[: len(names)]:
                    raise tarfile.ReadError(f"{len(names)} of {len(expected)} members are there")
                raise _differs(path)
            for sample, video, text in zip(samples, members[::2], members[1::2], strict=True):
                file = tar.extractfile(text)
                if file is None or file.read() != sample.facts:
                    raise _differs(path)
                found.append(TarMember(str(path), video.offset_data, video.size, video.name))
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: a damaged shard ({error}); remove it and run the command again") from None
    return found


def _differs(path: Path) -> ValueError:
    return ValueError(
        f"{path} is of a former run with other videos, labels or sizes; choose another folder or remove its "
        "shards"
    )


def _packed(
    entry: Entry, old_root: Path, new_root: Path, member: TarMember | None, left_out: dict[Path, str]
) -> Entry:
    """The entry of the new manifest."""
    original = entry.original or str(to_record(entry, old_root)["path"])
    if member is None:
        return replace(entry, path=new_root / original, ok=False, error=left_out[entry.path])
    path = new_root / f"{Path(member.tar).name}#{member.offset}+{member.size}#{member.name}"
    return replace(entry, path=path, original=original)
