"""Refuse weights files that ask for more time or memory than their bytes justify, before anything is copied."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...base.errors import UserError
from ...base.limits import SHARED_BYTES, TENSOR_NAME_LETTERS, WEIGHTS_ENTRIES, WEIGHTS_PACKED, WEIGHTS_SHARED
from ...base.words import brief

_ADVICE = "save model.state_dict() alone"


def check_archive(file: Path) -> None:
    """Raise UserError if a file is a zip archive, as torch.save writes, and its content is more than twice as large."""
    held = 0
    # the reader tells what is wrong with a damaged archive
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                held = sum(entry.file_size for entry in archive.infolist())
    if held > WEIGHTS_PACKED * file.stat().st_size:
        raise UserError(f"{str(file)!r} is packed, which torch.save never does; unpack it, or save it anew")


def check_entries(num_entries: int, source: str) -> None:
    """Raise UserError if a file holds too many tensors and other values by name."""
    if num_entries > WEIGHTS_ENTRIES:
        raise UserError(f"{source!r} holds more than {WEIGHTS_ENTRIES:,} tensors and other entries; {_ADVICE}")


def check_network(tensors: Mapping[str, Tensor], source: str, num_bytes: int | None) -> None:
    """Raise UserError unless tensors are plain ones, with usual names and about as many values as the file holds.

    Args:
        tensors: The tensors by name.
        source: The name of the file, for error messages.
        num_bytes: The size of the file; None for tensors that come from no file.
    """
    longest = max(tensors, key=len, default="")
    if len(longest) > TENSOR_NAME_LETTERS:
        raise UserError(
            f"{source!r} holds a tensor with a name of {len(longest):,} letters, {brief(longest, 40)}; no network has "
            f"such names, {_ADVICE}"
        )
    asked, storages = 0, {}
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"{source!r} holds a sparse, quantized or empty tensor: {brief(key)}")
        storage = value.untyped_storage()
        size = value.numel() * value.element_size()
        if size > storage.nbytes():
            raise UserError(
                f"{source!r} holds an expanded tensor, {brief(key)}: {size:,} bytes of {storage.nbytes():,} in the "
                "file; save its clone()"
            )
        asked += size
        storages[storage.data_ptr()] = storage.nbytes()
    held = sum(storages.values())
    if num_bytes is not None and held > WEIGHTS_PACKED * num_bytes:
        raise UserError(f"{source!r} holds tensors of {held:,} bytes, and has {num_bytes:,}; {_ADVICE}")
    if asked > max(WEIGHTS_SHARED * held, SHARED_BYTES):
        raise UserError(
            f"{source!r} holds {len(tensors):,} tensors that share their values: {asked:,} bytes of {held:,}; {_ADVICE}"
        )
