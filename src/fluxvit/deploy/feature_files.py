"""The files of features: .npy or Parquet, written some windows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fluxvit.utils.files import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa


class Features(NamedTuple):
    """Features of windows.

    ``spans`` float64 ``[N, 2]``, start and end in seconds; ``rows`` fp32 ``[N, P]``, or ``[N, K, C]`` of
    tokens; ``kept`` int64 ``[N, K]``, the indices of the tokens in the pool of their window, or None.
    """

    spans: np.ndarray
    rows: np.ndarray
    kept: np.ndarray | None = None


def write_npy(path: Path, batches: Iterator[Features]) -> int:
    """Write the .npy files of a video, and return the number of its windows.

    Args:
        path: Path of the files without their suffixes.
    """
    first = next(batches)
    suffixes = [".npy", ".spans.npy"] + ([] if first.kept is None else [".kept.npy"])
    with ExitStack() as stack:
        # The files get their names in reverse: when the features are there, the video is done.
        partial = [stack.enter_context(atomic_path(_with_suffix(path, suffix))) for suffix in suffixes]
        files = [_RowFile(stack.enter_context(path.open("wb"))) for path in partial]
        for batch in chain([first], batches):
            for file, values in zip(files, (batch.rows, batch.spans, batch.kept), strict=False):
                assert values is not None
                file.append(values)
        for file in files:
            file.finish()
    return files[0].count


class _RowFile:
    """An .npy file to which rows are appended, because their number is only known at the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.count = file, 0
        self._facts: dict[str, Any] = {}

    def append(self, rows: np.ndarray) -> None:
        if not self._facts:
            self._facts = np.lib.format.header_data_from_array_1_0(rows)
            self._write_header()
        self._file.write(np.ascontiguousarray(rows).data)
        self.count += len(rows)

    def finish(self) -> None:
        end = self._file.tell()
        self._file.seek(0)
        self._write_header()
        self._file.seek(end)

    def _write_header(self) -> None:
        # NumPy leaves room in it for a longer first axis.
        shape = (self.count, *self._facts["shape"][1:])
        np.lib.format.write_array_header_1_0(self._file, {**self._facts, "shape": shape})


def write_parquet(path: Path, batches: Iterator[Features]) -> int:
    """Write a Parquet file with a row for each window, or for each token of each window; see `write_npy`."""
    from pyarrow import parquet

    count = 0
    first = next(batches)
    with atomic_path(_with_suffix(path, ".parquet")) as partial:
        table = _table(first)
        with parquet.ParquetWriter(partial, table.schema) as writer:
            for batch in chain([first], batches):
                writer.write_table(_table(batch))
                count += len(batch.spans)
    return count


def _table(batch: Features) -> pa.Table:
    import pyarrow as pa

    repeats = 1 if batch.kept is None else batch.kept.shape[1]
    start, end = batch.spans.repeat(repeats, axis=0).T
    columns = {"start": pa.array(start), "end": pa.array(end)}
    if batch.kept is not None:
        columns["token"] = pa.array(batch.kept.reshape(-1))
    flat, width = pa.array(batch.rows.reshape(-1)), batch.rows.shape[-1]
    return pa.table({**columns, "feature": pa.FixedSizeListArray.from_arrays(flat, width)})


def _with_suffix(path: Path, suffix: str) -> Path:
    """A path with a suffix added; the name may have points of its own."""
    return path.with_name(path.name + suffix)
