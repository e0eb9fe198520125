"""returnn.torch.util.diagnose_gpu"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any, TextIO

import torch

__all__ = ["diagnose_no_gpu", "garbage_collect", "print_available_devices", "print_using_cuda_device_report"]


def print_available_devices(*, file: TextIO | None = None) -> None:
    """The devices that torch sees."""
    file = file or sys.stdout
    print(f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}", file=file)
    for index in range(torch.cuda.device_count()):
        print(f"  {index}: {torch.cuda.get_device_name(index)}", file=file)
    if not torch.cuda.is_available():
        print("  no CUDA device", file=file)


def print_using_cuda_device_report(dev: Any, *, file: TextIO | None = None) -> None:
    """Name and memory of a device."""
    facts = torch.cuda.get_device_properties(torch.device(dev))
    print(f"Using {facts.name}, {facts.total_memory / 2**30:.1f} GiB", file=file or sys.stdout)


def diagnose_no_gpu() -> list[str]:
    """Why there may be no GPU."""
    return [
        f"torch {torch.__version__}, built for CUDA {torch.version.cuda}",
        f"torch.cuda.is_available() = {torch.cuda.is_available()}",
        f"CUDA_VISIBLE_DEVICES = {os.environ.get('CUDA_VISIBLE_DEVICES')!r}",
    ]


def garbage_collect() -> None:
    """Free what nothing refers to, on the device, too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
