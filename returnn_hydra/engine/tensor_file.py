"""Reading and writing `.pt` files: the one place that calls `torch.load`, always with `weights_only=True`."""

from __future__ import annotations

import errno
import re
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from returnn_hydra.engine.errors import DamagedStateError, NonFiniteError
from returnn_hydra.engine.files import FileFacts, FileSystem, explain_read, hash_file, write_atomic

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):  # pragma: no cover
    raise ImportError(f"torch {torch.__version__}: weights_only=True is not safe before 2.6 (CVE-2025-32434)")

MEMBER_NAME = re.compile(r"[^/\\]+/(data\.pkl|data/\d+|byteorder|version|\.data/serialization_id|\.[a-z_]+)")
PLAIN_TYPES = (str, int, float, bool, type(None))


class Snapshot:
    """Copies nested state to the CPU; later copies of the same state reuse the memory of the first."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, state: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A copy that later training steps don't change; it is overwritten by the next call.

        Tensors that share memory (tied weights) share it in the copy.

        Raises:
            TypeError: something in it is neither a tensor nor plain data: `weights_only=True` could not load it.
        """
        copy = self._copy(state, where, {})
        assert isinstance(copy, dict)
        return copy

    def _copy(self, value: Any, where: str, seen: dict[tuple[Any, ...], Tensor]) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), where, seen)
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, (str, int)):
                    raise TypeError(f"{where}: key {key!r} is a {type(key).__name__}, expected a string or an integer")
            return {_one(key): self._copy(item, f"{where}.{key}", seen) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = [self._copy(item, f"{where}[{index}]", seen) for index, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, np.generic):
            value = value.item()
        if type(value) not in PLAIN_TYPES:
            raise TypeError(f"{where}: a {type(value).__name__} can't be saved, only tensors and plain data can")
        return _one(value)

    def _copy_tensor(self, tensor: Tensor, where: str, seen: dict[tuple[Any, ...], Tensor]) -> Tensor:
        address = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if address not in seen or tensor.numel() == 0:
            buffer = self._buffers.get(where)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = self._buffers[where] = torch.empty(tensor.shape, dtype=tensor.dtype)
            seen[address] = buffer.copy_(tensor)
        return seen[address]


def _one(value: Any) -> Any:
    """Equal strings become one object: pickle then writes the same bytes for the same state."""
    return sys.intern(value) if type(value) is str else value


def named_tensors(state: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested state with its path."""
    if isinstance(state, Tensor):
        yield where, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from named_tensors(value, f"{where}.{key}")
    elif isinstance(state, (list, tuple)):
        for index, value in enumerate(state):
            yield from named_tensors(value, f"{where}[{index}]")


def num_bytes(state: Any) -> int:
    """About the size of the file of this state."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(state, "")) + 4096


def check_finite(state: Any, where: str, may_be_infinite: Collection[str] = ()) -> None:
    """Look at every floating-point tensor, with one wait for the device.

    Args:
        may_be_infinite: names (below `where`) of constant buffers such as attention masks; NaN is an error there too.

    Raises:
        NonFiniteError: names the tensors with NaN or infinity.
    """
    allowed = {f"{where}.{name}" for name in may_be_infinite}
    tensors = [
        (name, tensor.detach())
        for name, tensor in named_tensors(state, where)
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel()
    ]
    checked = [(name, tensor) for name, tensor in tensors if name not in allowed]
    if checked and not _is_sum_finite([tensor for _, tensor in checked]):
        bad = [name for name, tensor in checked if not bool(torch.isfinite(tensor).all())]
        if bad:  # not so when only the sum overflowed
            raise NonFiniteError(_nonfinite_message(bad))
    if bad := [name for name, tensor in tensors if name in allowed and bool(torch.isnan(tensor).any())]:
        raise NonFiniteError(_nonfinite_message(bad))


def _is_sum_finite(tensors: list[Tensor]) -> bool:
    """True: every element is finite (10 times faster than looking at each). False: perhaps not."""
    device = tensors[0].device
    sums = []
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        total = real.sum(dtype=torch.float32 if real.element_size() < 4 else None)
        sums.append(total.to(device, torch.float32))
    return bool(torch.isfinite(torch.stack(sums)).all())


def _nonfinite_message(bad: list[str]) -> str:
    more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
    return f"NaN or infinity in {', '.join(bad[:8])}{more}: not saved, the last checkpoint stays the newest"


def write_tensors(disk: FileSystem, path: Path, content: Mapping[str, Any]) -> FileFacts:
    """
    Raises:
        StateWriteError: the disk refused.
    """
    return write_atomic(
        disk, path, lambda writer: torch.save(dict(content), cast(IO[bytes], writer)), num_bytes(content)
    )


def read_tensors(disk: FileSystem, path: Path, expected: FileFacts, map_location: Any = "cpu") -> dict[str, Any]:
    """Load a file of ours after its size and sha256 were compared with the manifest's.

    Raises:
        DamagedStateError: they differ.
        StateReadError: the operating system refused.
    """
    with explain_read(path), open_verified(disk, path, expected) as file:
        return _load(file, path, map_location)


def open_verified(disk: FileSystem, path: Path, expected: FileFacts) -> IO[bytes]:
    """An open file at its start, with the expected content.

    Raises:
        DamagedStateError: there is no such file, or its content is another.
        OSError: the operating system refused.
    """
    try:
        file = disk.open_read(path)
    except FileNotFoundError:
        raise DamagedStateError(f"{path}: missing, its manifest expects {expected.bytes:,} bytes") from None
    try:
        found = hash_file(file)
        if found != expected:
            raise DamagedStateError(
                f"{path}: damaged or swapped: {found.bytes:,} bytes with sha256 {found.sha256[:12]}..., "
                f"its manifest expects {expected.bytes:,} bytes with {expected.sha256[:12]}..."
            )
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def read_foreign_tensors(disk: FileSystem, path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Load a `.pt` file without manifest (RETURNN's, or any `torch.save`), after a look at its member names and CRCs.

    Raises:
        DamagedStateError: damaged, or no file of `torch.save`, or something in it that `weights_only=True` refuses.
        StateReadError: the operating system refused.
    """
    with explain_read(path), disk.open_read(path) as file:
        _check_zip(file, path)
        file.seek(0)
        return _load(file, path, map_location)


def _check_zip(file: IO[bytes], path: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if not MEMBER_NAME.fullmatch(member.filename) or member.compress_type != zipfile.ZIP_STORED:
                    raise DamagedStateError(f"{path}: {member.filename!r} does not belong into a file of torch.save")
            damaged = archive.testzip()
    except OSError as error:
        if error.errno != errno.EINVAL:  # that one: an offset in the archive is damaged
            raise
        raise DamagedStateError(f"{path}: damaged: an offset points out of the file") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DamagedStateError(f"{path}: no zip archive as torch.save writes it, or damaged ({error})") from error
    if damaged is not None:
        raise DamagedStateError(f"{path}: damaged: wrong CRC of {damaged}")


def _load(file: IO[bytes], path: Path, map_location: Any) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location=map_location, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many types for a file that it can't or won't load
        raise DamagedStateError(f"{path}: torch.load(weights_only=True) refuses it: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise DamagedStateError(f"{path}: holds a {type(content).__name__}, expected a dict")
    return content


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
