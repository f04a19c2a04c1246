"""N images in several .npy files, read as one array whose pages the system keeps or drops as it likes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ssl_core.errors import DataError

#: Files mapped at one time; a map costs a file descriptor and address space.
OPEN = 64


class Shards:
    """Images (N, H, W, C) uint8 in files of known lengths, in order.

    Index with a row number, a slice, or an array of row numbers (any order, repeats allowed): the answer is an array of
    its own. A file is mapped when it is first needed, at most `OPEN` are at a time. Pickles as its paths.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], image_shape: Sequence[int]) -> None:
        """`counts[i]` images of `image_shape` (H, W, C) lie in `paths[i]`. Nothing is opened yet."""
        self.paths = tuple(paths)
        self.counts = tuple(int(n) for n in counts)
        self.ends = np.cumsum(self.counts, dtype=np.int64)
        self.shape = (int(sum(self.counts)), *(int(s) for s in image_shape))
        self._maps: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @overload
    def __getitem__(self, rows: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, rows: slice | NDArray[Any] | Sequence[int]) -> NDArray[np.uint8]: ...
    def __getitem__(self, rows: int | slice | NDArray[Any] | Sequence[int]) -> NDArray[np.uint8]:
        if isinstance(rows, int | np.integer):
            one: NDArray[np.uint8] = self._gather(self._checked(np.array([rows])))[0]
            return one
        if isinstance(rows, slice):
            return self._gather(np.arange(*rows.indices(len(self))))
        wanted = np.asarray(rows)
        if wanted.dtype == np.bool_:
            if wanted.shape != (len(self),):
                raise IndexError(f"a mask of shape {wanted.shape} for {len(self)} images")
            wanted = np.flatnonzero(wanted)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise IndexError(f"rows must be whole numbers in one dimension, not {wanted.dtype} of shape {wanted.shape}")
        return self._gather(self._checked(wanted.astype(np.int64)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("images in several files cannot become one array without a copy")
        return np.asarray(self[:], dtype=dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.paths, self.counts, self.shape[1:])

    def _checked(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if rows.size and (rows.min() < -len(self) or rows.max() >= len(self)):
            raise IndexError(f"row {rows.max() if rows.max() >= len(self) else rows.min()} of {len(self)} images")
        return np.where(rows < 0, rows + len(self), rows)

    def _gather(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copies, one file after the other."""
        found = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        shard = np.searchsorted(self.ends, rows, side="right")
        for s in np.unique(shard):
            here = np.flatnonzero(shard == s)
            start = self.ends[s] - self.counts[s]
            found[here] = self._map(int(s))[rows[here] - start]
        return found

    def _map(self, shard: int) -> NDArray[np.uint8]:
        found = self._maps.get(shard)
        if found is None:
            path = self.paths[shard]
            try:
                found = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"packed images {path} cannot be read ({error}); pack the dataset again") from error
            if found.shape != (self.counts[shard], *self.shape[1:]) or found.dtype != np.uint8:
                raise DataError(
                    f"packed images {path} are {found.dtype} {found.shape}; expected uint8 "
                    f"{(self.counts[shard], *self.shape[1:])}; pack the dataset again"
                )
            self._maps[shard] = found
            while len(self._maps) > OPEN:
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(shard)
        return found
