"""Random tensors, from torch's generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from returnn_hydra.frontend.ambient import (
    ambient,
    get_default_array_index_dtype,
    get_default_device,
    get_default_float_dtype,
)
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import aligned
from returnn_hydra.frontend.tensor import Tensor, torch_dtype


def set_random_seed(seed: int) -> None:
    """Seed torch's generators, and what initial parameters are drawn from."""
    torch.manual_seed(seed)
    ambient.static_seed = (seed * 5393 + 1187) % 2**31
    reset_step_random_state()


def reset_step_random_state() -> None:
    """Draws with `static=True` begin anew."""
    ambient.static_rng = np.random.RandomState(ambient.static_seed)


def get_static_step_based_seed(*, size: Any = None) -> Any:
    """The next seed for a draw with `static=True`."""
    return ambient.static_rng.randint(2**31, size=size)


def static_generator(device: Any = None) -> torch.Generator | None:
    """A generator of its own for one draw, as RETURNN takes for every initial parameter; None on the meta device, where
    nothing is drawn."""
    seed = int(ambient.static_rng.randint(2**31))
    if torch.device(device or "cpu").type == "meta":
        return None
    return torch.Generator(device=device or "cpu").manual_seed(seed)


def get_random_state() -> dict[str, Any]:
    """State of torch's generators, by device."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go on from a saved state."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def random(
    dims: Sequence[Dim],
    *,
    distribution: str,
    dtype: str | None = None,
    device: str | None = None,
    sparse_dim: Dim | None = None,
    feature_dim: Dim | None = None,
    mean: Any = None,
    stddev: Any = None,
    bound: Any = None,
    minval: Any = None,
    maxval: Any = None,
    seed: Any = None,
    static: bool | None = None,
    like: Any = None,
    out: Tensor | None = None,
    **_ignored: Any,
) -> Tensor:
    """Random values.

    Args:
        distribution: uniform (minval, maxval or +-bound; integers exclude maxval), normal, truncated_normal (mean,
            stddev;
            cut at minval, maxval, default two standard deviations), bernoulli (mean).

    Raises:
        ValueError: another distribution.
    """
    dtype = dtype or get_default_float_dtype()
    device = device or (like.device if like is not None else get_default_device())
    shape = [d.get_dim_value() for d in dims]
    generator = None
    if seed is not None:
        number = int(np.asarray(seed).ravel()[0]) if not isinstance(seed, int) else seed
        generator = torch.Generator(device=device or "cpu").manual_seed(number)
    elif static:
        generator = static_generator(device)
    parameters = [_number(v, dims) for v in (mean, stddev, bound, minval, maxval)]
    raw = _sample(shape, distribution, torch_dtype(dtype), device, generator, *parameters)
    result = Tensor(
        f"random_{distribution}", dims=dims, dtype=dtype, sparse_dim=sparse_dim, feature_dim=feature_dim, raw_tensor=raw
    )
    if out is not None:
        with torch.no_grad():
            out.raw_tensor.copy_(raw)
        return out
    return result


def _number(value: Any, dims: Sequence[Dim]) -> Any:
    return aligned(value, dims) if isinstance(value, Tensor) else value


def _sample(
    shape: list[int], distribution: str, dtype: torch.dtype, device: Any, generator: Any,
    mean: Any, stddev: Any, bound: Any, minval: Any, maxval: Any,
) -> torch.Tensor:  # fmt: skip
    mean, stddev = 0.0 if mean is None else mean, 1.0 if stddev is None else stddev
    if distribution == "uniform":
        if bound is not None:
            minval, maxval = -bound, bound
        minval = 0 if minval is None else minval
        if not dtype.is_floating_point:
            if maxval is None:
                raise ValueError("random: uniform integers need maxval")
            minval, maxval = (_int_if_free(value) for value in (minval, maxval))
            if isinstance(minval, torch.Tensor) or isinstance(maxval, torch.Tensor):
                unit = torch.rand(shape, device=device, generator=generator)
                return (unit * (maxval - minval)).floor().to(dtype) + minval
            return torch.randint(minval, maxval, shape, dtype=dtype, device=device, generator=generator)
        maxval = 1 if maxval is None else maxval
        return torch.rand(shape, dtype=dtype, device=device, generator=generator) * (maxval - minval) + minval
    if distribution == "normal":
        return torch.randn(shape, dtype=dtype, device=device, generator=generator) * stddev + mean
    if distribution == "truncated_normal":
        low = mean - 2 * stddev if minval is None else minval
        high = mean + 2 * stddev if maxval is None else maxval
        raw = torch.empty(shape, dtype=dtype, device=device)
        return fill_truncated_normal(raw, float(mean), float(stddev), float(low), float(high), generator)
    if distribution == "bernoulli":
        return (torch.rand(shape, device=device, generator=generator) < mean).to(dtype)
    raise ValueError(f"random: unknown distribution '{distribution}': uniform, normal, truncated_normal, bernoulli")


def _int_if_free(value: Any) -> Any:
    """A scalar on the CPU as an int: RETURNN draws integers in another way where it had to wait for a device."""
    is_scalar = isinstance(value, torch.Tensor) and value.numel() == 1 and value.device.type == "cpu"
    return int(value) if is_scalar else value


def random_uniform(dims: Sequence[Dim], *, minval: Any = None, maxval: Any = None, **options: Any) -> Tensor:
    """Uniform in [minval, maxval), default [0, 1); with a `sparse_dim` any of its classes."""
    sparse_dim = options.get("sparse_dim")
    if sparse_dim is not None:
        options["dtype"] = options.get("dtype") or get_default_array_index_dtype()
        if maxval is None and options["dtype"].startswith(("int", "uint")):
            minval, maxval = 0 if minval is None else minval, sparse_dim.get_dim_value()
    return random(dims, distribution="uniform", minval=minval, maxval=maxval, **options)


def random_normal(dims: Sequence[Dim], *, mean: Any = 0.0, stddev: Any = 1.0, **options: Any) -> Tensor:
    """Normal."""
    return random(dims, distribution="normal", mean=mean, stddev=stddev, **options)


def fill_truncated_normal(
    raw: torch.Tensor, mean: float, stddev: float, low: float, high: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Normal, cut at low and high, in place: by the inverse of the distribution function, as RETURNN draws it.

    torch.nn.init.trunc_normal_ draws other numbers since torch 2.13.
    """
    below, above = (math.erf((limit - mean) / (stddev * math.sqrt(2.0))) for limit in (low, high))
    raw.uniform_(below, above, generator=generator)
    return raw.erfinv_().mul_(stddev * math.sqrt(2.0)).add_(mean).clamp_(low, high)


def random_truncated_normal(dims: Sequence[Dim], *, mean: Any = 0.0, stddev: Any = 1.0, **options: Any) -> Tensor:
    """Normal, cut at two standard deviations."""
    return random(dims, distribution="truncated_normal", mean=mean, stddev=stddev, **options)


def random_choice_with_replacement(dims: Sequence[Dim], *, probs: Tensor, axis: Dim) -> Tensor:
    """Indices of `axis`, drawn from the distribution `probs` for every position of `dims`."""
    common = [d for d in probs.dims if d != axis]
    new = [d for d in dims if d not in common]
    raw = probs.copy_compatible_to_dims_raw([*common, axis])
    count = 1
    for dim in new:
        count *= dim.get_dim_value()
    drawn = torch.multinomial(raw.reshape(-1, raw.shape[-1]), count, replacement=True)
    drawn = drawn.reshape([*raw.shape[:-1], *(d.get_dim_value() for d in new)])
    out = Tensor("random_choice", dims=[*common, *new], dtype="int64", sparse_dim=axis, raw_tensor=drawn)
    return out.copy_transpose(dims)


def random_choice_without_replacement(
    *, log_probs: Tensor, axis: Dim | Sequence[Dim], num_samples_dim: Dim, noise_scale: Any = 1.0
) -> Any:
    """Different indices, drawn in proportion to their probability (Gumbel top-k)."""
    from returnn_hydra.frontend.reduce import top_k

    uniform = random_uniform(log_probs.dims, device=log_probs.device, minval=1e-20)
    gumbel = uniform._new(uniform.dims, -torch.log(-torch.log(uniform.raw_tensor)))
    _, indices, _ = top_k(log_probs + gumbel * noise_scale, axis=axis, k_dim=num_samples_dim)
    return indices


def dropout_broadcast_default() -> bool:
    """Whether modules share a dropout mask over all frames: the config's `rf_dropout_broadcast`, else as always in
    RETURNN."""
    option = ambient.options.get("rf_dropout_broadcast")
    return True if option is None else bool(option)


def dropout(source: Tensor, drop_prob: Any, *, axis: Any = None, on_forward: bool = False) -> Tensor:
    """Set values to 0 with a probability and scale up the others, in training.

    Args:
        axis: the dims over which the mask varies; it is shared over the others. None or False: over all.
        on_forward: outside of training too.
    """
    from returnn_hydra.frontend.run_ctx import get_run_ctx

    if isinstance(drop_prob, (int, float)):
        if not 0 <= drop_prob < 1:
            raise ValueError(f"dropout: drop_prob={drop_prob} is not in [0, 1)")
        if drop_prob == 0:
            return source
    if not on_forward and not get_run_ctx().is_train_flag_enabled(func=dropout):
        return source
    dims = list(source.dims)
    if axis is not None and axis is not False and axis is not True:
        chosen = [axis] if isinstance(axis, Dim) else list(axis)
        dims = [d for d in source.dims if d in chosen]
    keep = 1.0 - (drop_prob.raw_tensor if isinstance(drop_prob, Tensor) else drop_prob)
    sizes = [source.raw_tensor.shape[n] if d in dims else 1 for n, d in enumerate(source.dims)]
    noise = torch.rand(sizes, device=source.raw_tensor.device, dtype=source.raw_tensor.dtype)
    mask = (noise + keep).floor()
    return source._new(source.dims, source.raw_tensor * (mask / keep))
