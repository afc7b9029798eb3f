"""Videos packed into tar files of about one size, for storage that dislikes many small files.

Next to each video lies a ``.json`` of the same name with what its manifest says: the layout of WebDataset, so
that others can stream the shards in order. fluxvit itself reads them by byte range, through a manifest whose
paths say where in which shard a video is (see `fluxvit.video.tar_members`): any order, exact resuming and
validation are as with files. The bytes are those of the files.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, Any

from msgspec import Meta

from fluxvit.data.config import ShardConfig
from fluxvit.data.manifest import Entry, Manifest, content_digest, read_manifest, to_record, write_manifest
from fluxvit.utils.files import atomic_path, lock_file
from fluxvit.utils.progress import report
from fluxvit.utils.schema import Count, convert, plain, shown
from fluxvit.utils.terminal import printable
from fluxvit.video.tar_members import TarMember, is_url

_BLOCK = 512
MAX_BYTES = 1 << 60
"""Largest size that a shard may be given."""
_Bytes = Annotated[int, Meta(ge=1, le=MAX_BYTES)]
_DIGITS_OF_HASH = 64


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
    """A video that goes into a shard: ``key``.suffix and ``key``.json."""

    path: Path
    key: str
    size: int
    facts: dict[str, Any]

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
            return 0  # It does not tell.
        facts = os.stat(self.path if member is None else member.tar)
        # The time of the content can be set back, as copying does; that of the entry cannot.
        return max(facts.st_mtime_ns, facts.st_ctime_ns)

    def json(self, sha256: str) -> bytes:
        return json.dumps({**self.facts, "sha256": sha256}, ensure_ascii=False).encode(
            errors="backslashreplace"
        )

    def total(self) -> int:
        """Bytes in the tar, with headers."""
        contents = self.size, len(self.json("0" * _DIGITS_OF_HASH))
        return sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in contents)


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
    return write_shards(videos, out, source.stem, size, max_videos=config.max_videos, url=config.url)


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
    max_videos: int | None = None,
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
        max_videos: Most videos in one; None: as many as there is room for.
        url: The address that the shards will be read from, such as ``s3://bucket/k400``; default: the folder
            of the manifest, so that all can be moved together.

    Raises:
        ValueError: No video can be packed, the folder holds shards of this name that differ, or another run
            is writing them.
        OSError: A file cannot be read or written, or has changed while it was packed.
    """
    max_bytes = convert(plain(max_bytes), _Bytes, key="max_bytes")
    if max_videos is not None:
        max_videos = convert(plain(max_videos), Count, key="max_videos")
    out = Path(out).absolute()
    with lock_file(out / f"{name}.jsonl"):
        samples, left_out = _samples(manifest)
        if not samples:
            path, reason = next(iter(left_out.items()))
            raise ValueError(f"none of the {len(manifest)} videos can be packed, such as {path}: {reason}")
        plan = {
            out / f"{name}-{number:06d}.tar": part
            for number, part in enumerate(_parts(samples, max_bytes, max_videos))
        }
        stray = sorted(set(out.glob(f"{glob.escape(name)}-{'[0-9]' * 6}.tar")) - set(plan))
        if stray:
            raise _differs(stray[0])
        places: dict[Path, TarMember] = {}
        hashes: dict[Path, str] = {}
        kept = 0
        with report("Packing videos", len(samples), enabled=progress) as advance:
            for path, part in plan.items():
                contents = _contents(path, part) if path.exists() else []
                if _is_current(path, contents):
                    kept += 1
                else:
                    _write_shard(path, part)
                    contents = _contents(path, part)
                for sample, place, sha256 in contents:
                    places[sample.path], hashes[sample.path] = place, sha256
                advance(len(part))
        root = out if url is None else Path(url)
        entries = tuple(
            _packed(entry, manifest.root, root, places, hashes, left_out) for entry in manifest.entries
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
        if fault is not None:
            left_out[path] = fault
            continue
        samples.append(_Sample(path, f"{numbers[path]:08d}", size, _facts(parts, manifest)))
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


def _facts(parts: list[Entry], manifest: Manifest) -> dict[str, Any]:
    """What the manifest says about a file: of several segments, a list."""
    records = []
    for entry in parts:
        record = to_record(entry, manifest.root)
        record["path"] = record.pop("original", record["path"])
        if manifest.labels and entry.label >= 0:
            record["class"] = manifest.labels[entry.label]
        if manifest.labels and entry.labels is not None:
            record["classes"] = [manifest.labels[number] for number in entry.labels]
        record.pop("sha256", None)
        records.append(record)
    return records[0] if len(records) == 1 else {"path": records[0]["path"], "segments": records}


def _parts(samples: list[_Sample], max_bytes: int, max_videos: int | None) -> Iterator[list[_Sample]]:
    """Consecutive samples that go into one shard."""
    part: list[_Sample] = []
    # A tar ends with two empty blocks, and is filled up to whole records.
    room = left = max_bytes - 2 * _BLOCK - tarfile.RECORDSIZE
    for sample in samples:
        size = sample.total()
        if part and (size > left or len(part) == max_videos):
            yield part
            part, left = [], room
        part.append(sample)
        left -= size
    yield part


def _write_shard(path: Path, samples: list[_Sample]) -> None:
    with atomic_path(path) as partial, tarfile.open(partial, "w") as tar:
        for sample in samples:
            before = sample.changed()
            with sample.open() as file:
                hashed = _Hashed(file)
                try:
                    tar.addfile(_header(sample.member, sample.size), hashed)
                except OSError as error:
                    if error.errno is None:  # What tarfile says of a file that has become shorter.
                        raise _changing(sample) from None
                    raise
            if sample.changed() != before:
                raise _changing(sample)
            facts = sample.json(hashed.digest.hexdigest())
            tar.addfile(_header(f"{sample.key}.json", len(facts)), io.BytesIO(facts))


def _header(name: str, size: int) -> tarfile.TarInfo:
    # No time and no owner: the same videos make the same bytes.
    header = tarfile.TarInfo(name)
    header.size = size
    return header


class _Hashed(io.RawIOBase):
    """Passes on the bytes of a file and hashes them on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _changing(sample: _Sample) -> OSError:
    return OSError(
        errno.EAGAIN, "it has changed while it was packed; run the command again", str(sample.path)
    )


def _is_current(path: Path, contents: list[tuple[_Sample, TarMember, str]]) -> bool:
    """Whether a shard holds its videos as they are now.

    A video that is as large as before and was last changed before the shard was written is taken to be the
    same; any other is compared by its hash.
    """
    for sample, place, sha256 in contents:
        if place.size != sample.size:
            return False
        if sample.changed() >= path.stat().st_mtime_ns:
            with sample.open() as file:
                if _hash(file) != sha256:
                    return False
    return bool(contents)


def _hash(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while data := file.read(1 << 20):
        digest.update(data)
    return digest.hexdigest()


def _contents(path: Path, samples: list[_Sample]) -> list[tuple[_Sample, TarMember, str]]:
    """The place of each sample in a shard, its size there, and its hash.

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
                content = b"" if file is None else file.read()
                sha256 = json.loads(content)["sha256"]
                if content != sample.json(sha256):
                    raise _differs(path)
                place = TarMember(str(path), video.offset_data, video.size, video.name)
                found.append((sample, place, sha256))
    except (KeyError, TypeError):  # The text is none of ours.
        raise _differs(path) from None
    except (tarfile.TarError, json.JSONDecodeError, UnicodeDecodeError, EOFError) as error:
        raise ValueError(f"{path}: a damaged shard ({error}); remove it and run the command again") from None
    return found


def _differs(path: Path) -> ValueError:
    return ValueError(
        f"{path} is of a former run with other videos, labels or sizes; choose another folder or remove its "
        "shards"
    )


def _packed(
    entry: Entry,
    old_root: Path,
    new_root: Path,
    places: dict[Path, TarMember],
    hashes: dict[Path, str],
    left_out: dict[Path, str],
) -> Entry:
    """The entry of the new manifest."""
    original = entry.original or str(to_record(entry, old_root)["path"])
    if entry.path not in places:
        return replace(entry, path=new_root / original, ok=False, error=left_out[entry.path])
    place = places[entry.path]
    path = new_root / f"{Path(place.tar).name}#{place.offset}+{place.size}#{place.name}"
    extra = {**entry.extra, "sha256": hashes[entry.path]}
    return replace(entry, path=path, original=original, extra=extra)
