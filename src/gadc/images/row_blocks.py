"""Images in a parquet column, by row, holding a few blocks of rows at a time."""

import bisect
import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gadc.images.faults import ImageError
from gadc.images.files import MAX_IMAGE_BYTES, Stamp, with_retries

BLOCK_BYTES = 1 << 26
"""Rows are decoded in blocks of about this size; a smaller row group is one block."""
MAX_DICTIONARY_ROWS = 1024
"""Most rows in a block where values may repeat, so that their stored size says little."""
N_CACHED_BLOCKS = 4
READ_BUFFER_BYTES = 1 << 20
PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError)


class RowGroup(NamedTuple):
    """One row group of one file.

    Attributes:
        path: The file.
        stamp: What the file looked like at the scan.
        number: Which of the file's row groups.
        first_row: Its first row, counted over all files.
        n_rows: Its length.
        rows_per_block: How many rows are decoded together.
    """

    path: str
    stamp: Stamp
    number: int
    first_row: int
    n_rows: int
    rows_per_block: int


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a file so that page checksums are verified, where there are any."""
    return with_retries(
        functools.partial(
            pq.ParquetFile,
            path,
            page_checksum_verification=True,
            pre_buffer=False,
            buffer_size=READ_BUFFER_BYTES,
        )
    )


def rows_per_block(n_rows: int, n_bytes: int, *, has_dictionary: bool) -> int:
    """Return how many rows of a column chunk make about `BLOCK_BYTES`."""
    by_size = max(1, BLOCK_BYTES * n_rows // max(n_bytes, 1))
    return min(by_size, MAX_DICTIONARY_ROWS if has_dictionary else n_rows)


class RowReader:
    """Image number `position` is row number `position` of all files together."""

    def __init__(self, groups: Sequence[RowGroup], *, leaf: str) -> None:
        self.groups = groups
        self.first_rows = [group.first_row for group in groups]
        self.leaf = leaf
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[int, int], pa.Array] = OrderedDict()
        self._broken_from: dict[int, tuple[int, str]] = {}
        self._cursor: _Cursor | None = None

    def __reduce__(self) -> tuple[Callable[..., "RowReader"], tuple[Sequence[RowGroup]]]:
        """Travel to another process without open files and blocks."""
        return functools.partial(type(self), leaf=self.leaf), (self.groups,)

    def read(self, position: int) -> bytes:
        """Return the row's bytes."""
        group_index = bisect.bisect_right(self.first_rows, position) - 1
        group = self.groups[group_index]
        block, row = divmod(position - group.first_row, group.rows_per_block)
        value = self._block(group_index, block)[row]
        if not value.is_valid:
            raise ImageError("not_an_image", "the row has no image bytes")
        n_bytes = value.as_buffer().size
        if n_bytes > MAX_IMAGE_BYTES:
            raise ImageError("too_large", f"{n_bytes} bytes; the limit is {MAX_IMAGE_BYTES}")
        return bytes(value.as_py())

    def path(self, position: int) -> str | None:
        """Return None: there is no file of its own."""
        return None

    def _block(self, group_index: int, block: int) -> pa.Array:
        with self._lock:
            cached = self._blocks.get((group_index, block))
            if cached is not None:
                self._blocks.move_to_end((group_index, block))
                return cached
            # Remembered, or each of the rows behind a bad page would decode all pages before it.
            if group_index in self._broken_from:
                first_bad, message = self._broken_from[group_index]
                if block >= first_bad:
                    raise ImageError("io_error", message)
            return self._load(group_index, block)

    def _load(self, group_index: int, block: int) -> pa.Array:
        """Decode forward to a block; going back means starting the row group again."""
        group = self.groups[group_index]
        try:
            unchanged = Stamp.of(os.stat(group.path)) == group.stamp
        except OSError:
            unchanged = False
        if not unchanged:
            self._cursor = None
            raise ImageError("changed", f"{group.path} changed since the scan; scan again")
        cursor = self._cursor
        next_block = 0
        try:
            if cursor is None or cursor.group_index != group_index or cursor.next_block > block:
                cursor = self._cursor = _Cursor(group_index, group, self.leaf)
            for next_block in range(cursor.next_block, block + 1):
                self._blocks[group_index, next_block] = loaded = cursor.read_block()
                if len(self._blocks) > N_CACHED_BLOCKS:
                    self._blocks.popitem(last=False)
        except PARQUET_ERRORS as error:
            self._cursor = None
            message = f"row group {group.number} of {group.path} can't be decoded: {error}"
            self._broken_from[group_index] = (next_block, message)
            raise ImageError("io_error", message) from error
        return loaded


class _Cursor:
    """A row group being decoded from its start, block by block."""

    def __init__(self, group_index: int, group: RowGroup, leaf: str) -> None:
        self.group_index, self.group = group_index, group
        self.next_block = 0
        self.pending: list[pa.Array] = []
        self.batches = open_parquet(group.path).iter_batches(
            batch_size=group.rows_per_block,
            row_groups=[group.number],
            columns=[leaf],
            use_threads=False,
        )

    def read_block(self) -> pa.Array:
        """Return the next block of values, the last one shorter.

        Raises:
            OSError: Fewer rows than declared.
        """
        rows_left = self.group.n_rows - self.next_block * self.group.rows_per_block
        n_rows = min(self.group.rows_per_block, rows_left)
        parts = self.pending
        while sum(map(len, parts)) < n_rows:
            batch = next(self.batches, None)
            if batch is None:
                raise OSError("it ends before the number of rows it declares")
            values = batch.column(0)
            parts.append(values.flatten()[0] if pa.types.is_struct(values.type) else values)
        values = pa.concat_arrays(parts) if len(parts) > 1 else parts[0]
        self.pending = [values[n_rows:]] if len(values) > n_rows else []
        self.next_block += 1
        return values[:n_rows]
