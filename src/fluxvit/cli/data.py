"""``fluxvit data check``, ``data shard`` and ``data make``: what they print besides their result."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from fluxvit.data.check import probe_manifest
from fluxvit.data.config import CheckConfig, ShardConfig
from fluxvit.data.formats.registry import read_source
from fluxvit.data.manifest import read_manifest
from fluxvit.data.shards import MAX_BYTES, write_shards
from fluxvit.synthetic.builder import DatasetConfig, MakingOptions, make_dataset
from fluxvit.utils.schema import shown
from fluxvit.utils.terminal import say


def check(config: CheckConfig) -> Path:
    """Check a data set and write its manifest."""
    columns = _columns(config.columns)
    videos = read_source(
        config.source, config.format, config.root, config.split, config.labels, config.like, columns
    )
    recognised = "recognised as" if config.format == "auto" else "read as"
    part = f" {videos.split}" if videos.split else ""
    say(f"{config.source}: {recognised} {videos.name}{part}, {len(videos.entries)} videos", error=True)
    for note in videos.notes:
        say(f"fluxvit: {note}", error=True)
    say(probe_manifest(videos, config.out, config.workers, deep=config.deep, time_limit=config.time_limit))
    return Path(config.out)


def _columns(parts: tuple[str, ...]) -> dict[str, str] | None:
    pairs = [part.partition("=") for part in parts]
    if not all(role.strip() and name.strip() for role, _, name in pairs):
        raise ValueError(
            f"--columns {shown(','.join(parts))}: give names of columns, such as path=video,label=class"
        )
    return {role.strip(): name.strip() for role, _, name in pairs} or None


def shard(config: ShardConfig) -> Any:
    """Pack the videos of a manifest into tar files."""
    videos = read_manifest(config.manifest, target=None)
    source, out = Path(config.manifest), Path(config.out)
    if out.resolve() == source.resolve().parent:
        raise ValueError(f"{out}: {source} lies there and would be replaced; choose another folder")
    size = _bytes(config.size)
    return write_shards(videos, out, source.stem, size, max_videos=config.max_videos, url=config.url)


def make(config: MakingOptions) -> Path:
    """Make the data set of a config that also says where."""
    kind = next(base for base in type(config).__mro__[1:] if issubclass(base, DatasetConfig))
    own = {field.name: getattr(config, field.name) for field in fields(kind)}
    return make_dataset(config.out, kind(**own), workers=config.workers)


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
