"""Which device a run uses, and the random numbers of a step."""

from __future__ import annotations

import hashlib
import random
import re

import numpy as np
import torch


def select_device(name: str, local_rank: int | None = None) -> torch.device:
    """`auto`, `cpu`, `gpu` (= cuda), `cuda:N` or `mps` to a device that is there.

    A GPU becomes the current one, which torch.cuda.manual_seed, nccl and new tensors on `cuda` use.

    Args:
        local_rank: of several processes on this machine, each takes the GPU of its number.

    Raises:
        ValueError: no such device word, this machine has no such device, or several processes would share one.
    """
    device = _find_device(name if local_rank is None else _of_rank(name, local_rank))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def _of_rank(name: str, local_rank: int) -> str:
    if name in ("gpu", "cuda") or (name == "auto" and torch.cuda.is_available()):
        return f"cuda:{local_rank}"
    if name in ("auto", "cpu"):
        return "cpu"
    raise ValueError(f"device={name}: several processes can't share it; expected auto, cpu or gpu")


def _find_device(name: str) -> torch.device:
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps" and has_mps:
        return torch.device("mps")
    wanted = re.fullmatch(r"(?:gpu|cuda)(?::?(\d+))?", name)
    if wanted and int(wanted[1] or 0) < torch.cuda.device_count():
        return torch.device(f"cuda:{wanted[1]}" if wanted[1] else "cuda")
    if wanted or name == "mps":
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())), *(["mps"] * has_mps)]
        raise ValueError(f"device={name}: not on this machine, which has {', '.join(there)}")
    raise ValueError(f"device={name!r}: expected auto, cpu, gpu, cuda, cuda:N or mps")


def seed_of(*parts: int) -> int:
    """A well-mixed seed in [0, 2**63) from whole numbers such as (seed, epoch, step, rank)."""
    digest = hashlib.sha256(b"".join(part.to_bytes(8, "big", signed=True) for part in parts)).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(device: torch.device | None, *parts: int) -> None:
    """Seed torch, numpy and Python's random from (seed, epoch, step, ...), so that this point can be entered again.

    Without a device, torch's generators are left alone.
    """
    seed = seed_of(*parts)
    if device is not None:
        seed_torch(device, seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_torch(device: torch.device, seed: int) -> None:
    """Seed torch's generators of the CPU and of the device.

    Only these: torch.manual_seed looks for every kind of device, which takes 0.1 ms, a tenth of a small model's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
