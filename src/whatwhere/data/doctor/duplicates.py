"""Find images that are nearly the same, and merge groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..images import MAX_VALUE
from .probe import LOOK_SIZE, Entry, full_range

T = TypeVar("T", int, str)
_Floats = NDArray[np.float32]
_Ints = NDArray[np.int64]

_NUM_PIXELS = LOOK_SIZE[0] * LOOK_SIZE[1]
# largest mean squared difference of two small grey pictures, each with mean 0 and variance 1
_LIMIT = 0.02
# a picture with a smaller standard deviation, in grey levels, is too flat to compare
_FLAT = 4.0
# largest difference of two mean colours, in grey levels: of a channel, and of the differences between channels
_BRIGHTNESS, _HUE = 40, 16
# the grids of `_candidates`: frequencies that they may divide, width of a cell, and their number
_NUM_WAVES, _CELL, _NUM_GRIDS = 24, 6.0, 6
# a grid may give so many candidates for each image, or in all
_PAIRS_PER_IMAGE, _FEW_PAIRS = 24, 2_000_000
_AT_ONCE = 20_000
_MOST_IN_CELL = 2_000


def near_groups(entries: Sequence[Entry], max_value: int = MAX_VALUE) -> list[list[int]]:
    """Return groups of entries that are nearly the same: saved again, resized or slightly brightened.

    Each image becomes a picture of 17 x 16 grey pixels with mean 0 and variance 1. Two images are nearly the same if
    the mean squared difference of their pictures is at most 0.02 and their mean colours are close. A group is joined by
    such pairs: its first and its last image may differ more. Of images that are the same byte for byte, only the first
    is compared. 16-bit grey is seen with `max_value` as white.

    Comparing all pairs would take too long. Candidates are pairs in the same cell of a grid over the lowest spatial
    frequencies; six grids with random offsets are used, and nearly equal pictures share a cell in most of them. In the
    measurements below, this missed no pair within the limit. Two images that are in one group already are not compared:
    the n pictures of a fixed camera take some n comparisons, not n^2.

    Measured with 3,000 CIFAR-10 images (32x32) and 600 sign-language photos (100x100). Found were, of images saved as
    JPEG at quality 60, 99.9 % and 100 %; resized to 80 %, 100 % of both; brightened by 10 %, 99.6 % and 100 %; all
    three at once, 98.6 % and 100 %. No pair of different photos was found among 2.1 million; the nearest is at 0.043.
    Of the 1.8 billion pairs of CIFAR-10, 45 were found (114 with a limit of 0.03); by eye, each is one picture twice.
    Among 1,797 handwritten digits of 8x8, 8 pairs were found.
    """
    first = {entry.digest: index for index, entry in reversed(list(enumerate(entries))) if not entry.fault}
    chosen = np.array(sorted(first.values()), dtype=np.int64)
    if len(chosen) < 2:
        return []
    looks = np.frombuffer(b"".join(entries[index].look for index in chosen), np.uint8).reshape(len(chosen), -1)
    looks = np.array([_seen(look, entries[index], max_value) for look, index in zip(looks, chosen, strict=True)])
    grey = looks[:, :_NUM_PIXELS].astype(np.float32)
    grey -= grey.mean(1, keepdims=True)
    deviation = grey.std(1)
    is_rich = deviation >= _FLAT
    chosen, colours = chosen[is_rich], looks[is_rich, _NUM_PIXELS:].astype(np.int16)
    grey = grey[is_rich] / deviation[is_rich, None]
    waves = grey @ _low_waves()
    groups = np.arange(len(chosen))
    for pairs in _candidates(waves, groups):
        portions = (pairs[start : start + _AT_ONCE] for start in range(0, len(pairs), _AT_ONCE))
        _join(groups, np.concatenate([_confirmed(portion, waves, grey, colours) for portion in portions]))
    order = np.argsort(groups, kind="stable")
    runs = np.split(chosen[order], np.flatnonzero(np.diff(groups[order])) + 1)
    return sorted(run.tolist() for run in runs if len(run) > 1)


def _join(groups: _Ints, pairs: _Ints) -> None:
    """Give all images of the groups that `pairs` join the same number in `groups`."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if len(pairs):
        graph = coo_matrix((np.ones(len(pairs)), groups[pairs].T), shape=(len(groups), len(groups)))
        groups[:] = connected_components(graph, directed=False)[1][groups]


def _seen(look: NDArray[np.uint8], entry: Entry, max_value: int) -> NDArray[np.uint8]:
    """Return the look of an image where `max_value` is white: that of 16-bit grey is by the bits that it uses."""
    if not entry.is_grey16 or (own := full_range(entry.largest)) == max_value:
        return look
    return (look * np.float32(own / max_value)).round().clip(max=255).astype(np.uint8)


def joined(groups: Iterable[Sequence[T]]) -> list[list[T]]:
    """Merge groups that share a member; return the merged groups and their members in ascending order."""
    groups = list(groups)
    members = sorted({member for group in groups for member in group})
    number = {member: index for index, member in enumerate(members)}
    links = [(number[group[0]], number[member]) for group in groups for member in group]
    found = np.arange(len(members))
    _join(found, np.array(links, np.int64).reshape(-1, 2))
    merged: dict[int, list[T]] = defaultdict(list)
    for member, group_number in zip(members, found.tolist(), strict=True):
        merged[group_number].append(member)
    return list(merged.values())


def _low_waves() -> _Floats:
    """Return the lowest 24 cosine waves of a small picture, (pixels, waves), orthonormal."""
    width, height = LOOK_SIZE
    orders = sorted(((v, u) for v in range(height) for u in range(width) if v or u), key=lambda vu: (sum(vu), vu))
    columns = []
    for v, u in orders[:_NUM_WAVES]:
        wave = np.outer(
            np.cos(np.pi * v * (np.arange(height) + 0.5) / height), np.cos(np.pi * u * (np.arange(width) + 0.5) / width)
        )
        columns.append((wave / np.linalg.norm(wave)).ravel())
    return np.stack(columns, 1).astype(np.float32)


def _candidates(waves: _Floats, groups: _Ints) -> Iterator[_Ints]:
    """Yield the pairs of images that share a cell, grid by grid, but not a group.

    The caller joins `groups` in place, by the pairs that it confirms, before it takes the next pairs.
    """
    # a fixed seed: the same offsets for all data
    offsets = np.random.default_rng(0).random((_NUM_GRIDS, _NUM_WAVES)).astype(np.float32)
    allowed = max(_FEW_PAIRS, _PAIRS_PER_IMAGE * len(waves))
    num_axes = 1
    for offset in offsets:
        cells = np.floor(waves / _CELL + offset).astype(np.int64)
        # the finest grid first: it joins the very alike, which would fill the cells of a coarse one
        yield from _pairs(_cells(cells), groups, _MOST_IN_CELL)
        while num_axes < _NUM_WAVES:
            members = _cells(cells[:, :num_axes])
            # else too many images share a cell: use a finer grid
            if _num_apart(members, groups) <= allowed:
                yield from _pairs(members, groups)
                break
            num_axes += 1


def _cells(cells: _Ints) -> _Ints:
    """Return the number of the cell of each image."""
    keys = np.zeros(len(cells), np.uint64)
    for axis in range(cells.shape[1]):
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + cells[:, axis].astype(np.uint64)
    numbers: _Ints = np.unique(keys, return_inverse=True)[1].reshape(-1)
    return numbers


def _num_apart(cells: _Ints, groups: _Ints) -> int:
    """Return the number of pairs of images that share a cell but not a group."""
    both = np.unique(cells * len(cells) + groups, return_counts=True)[1]
    return int((np.bincount(cells) ** 2).sum() - (both**2).sum()) // 2


def _pairs(cells: _Ints, groups: _Ints, most: int | None = None) -> Iterator[_Ints]:
    """Yield the pairs of images that share a cell but not a group; of each image at most `most`."""
    order = np.lexsort((groups, cells))
    cell, group = cells[order], groups[order]
    ends = np.searchsorted(cell, cell, side="right")
    # of each image, the place behind its own group in the cell
    both = cell * len(cells) + group
    starts = np.searchsorted(both, both, side="right")
    firsts = np.flatnonzero(np.diff(cell, prepend=-1))
    left = np.arange(len(order))
    batch: list[_Ints] = []
    for step in range(min(int((ends - starts).max(initial=0)), most or len(cells))):
        left = left[starts[left] + step < ends[left]]
        pairs = np.stack([order[left], order[starts[left] + step]], 1)
        # the caller may have joined them meanwhile
        batch.append(pairs[groups[pairs[:, 0]] != groups[pairs[:, 1]]])
        if sum(map(len, batch)) > _AT_ONCE:
            yield np.concatenate(batch)
            batch = []
            # a cell of one group needs no more pairs
            now = groups[order]
            is_apart = np.minimum.reduceat(now, firsts) < np.maximum.reduceat(now, firsts)
            left = left[is_apart[cell[left]]]
    if sum(map(len, batch)):
        yield np.concatenate(batch)


def _confirmed(pairs: _Ints, waves: _Floats, grey: _Floats, colours: NDArray[np.int16]) -> _Ints:
    # first by the lowest frequencies, a lower bound of the difference
    for features in (waves, grey):
        difference = features[pairs[:, 0]] - features[pairs[:, 1]]
        pairs = pairs[np.einsum("ij,ij->i", difference, difference) <= _LIMIT * _NUM_PIXELS]
    colour = colours[pairs[:, 0]] - colours[pairs[:, 1]]
    hue = np.abs(colour - colour[:, [1, 2, 0]]).max(1, initial=0)
    result: _Ints = pairs[(np.abs(colour).max(1, initial=0) <= _BRIGHTNESS) & (hue <= _HUE)]
    return result
