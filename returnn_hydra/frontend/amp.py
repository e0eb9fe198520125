"""RETURNN's policy of mixed precision for backends without autocast. On torch, `torch_amp` does it, and the policy only
has an effect on what is cast with the functions here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from returnn_hydra.frontend.ambient import ambient, ambient_state, is_float_dtype
from returnn_hydra.frontend.elementwise import cast
from returnn_hydra.frontend.tensor import Tensor


@dataclass(frozen=True)
class AmpPolicy:
    """The dtype that products of matrices are computed in."""

    compute_dtype: str

    def __post_init__(self) -> None:
        if not is_float_dtype(self.compute_dtype):
            raise ValueError(f"AmpPolicy: compute_dtype must be a float dtype, it is '{self.compute_dtype}'")


def _policy(policy: AmpPolicy | str | None) -> AmpPolicy | None:
    return AmpPolicy(policy) if isinstance(policy, str) else policy


def get_amp_policy() -> AmpPolicy | None:
    """The policy; None: full precision."""
    policy: AmpPolicy | None = ambient.amp_policy
    return policy


def set_amp_policy(policy: AmpPolicy | str | None) -> None:
    """The policy, or its dtype, from now on; None: full precision."""
    ambient.amp_policy = _policy(policy)


@contextlib.contextmanager
def set_amp_policy_ctx(policy: AmpPolicy | str | None) -> Iterator[None]:
    """The policy inside the `with` block."""
    with ambient_state(amp_policy=_policy(policy)):
        yield


def amp_cast_compute(*tensors: Tensor | None) -> Any:
    """Float tensors in the policy's dtype; other tensors, and all without a policy, stay. One in, one out."""
    policy = get_amp_policy()
    return _cast_all(tensors, None if policy is None else policy.compute_dtype)


def amp_cast_float32(*tensors: Tensor | None) -> Any:
    """Float tensors in float32; other tensors, and all without a policy, stay. One in, one out."""
    return _cast_all(tensors, None if get_amp_policy() is None else "float32")


def _cast_all(tensors: tuple[Tensor | None, ...], dtype: str | None) -> Any:
    if dtype is not None:
        floats = [t is not None and t.dtype != dtype and is_float_dtype(t.dtype) for t in tensors]
        tensors = tuple(cast(t, dtype) if f and t is not None else t for t, f in zip(tensors, floats, strict=True))
    return tensors[0] if len(tensors) == 1 else tensors
