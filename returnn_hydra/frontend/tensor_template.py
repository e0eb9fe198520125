"""From RETURNN's entry of `extern_data` / `model_outputs` (dim, shape, sparse, ...) to dims and dtype."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from returnn_hydra.frontend.ambient import ambient
from returnn_hydra.frontend.dim import Dim, batch_dim


class NotSpecified:
    """Marks an argument that was not given, where None means something."""

    @classmethod
    def resolve(cls, value: Any, default: Any) -> Any:
        """`value`, or `default` if none was given."""
        return default if value is cls else value


@dataclass(frozen=True)
class Template:
    """What is known of a tensor before its values."""

    dims: tuple[Dim, ...]
    dtype: str
    sparse_dim: Dim | None
    feature_dim: Dim | None
    time_dim: Dim | None
    version: int


_OPTIONS = (
    "shape", "dim", "sparse", "dim_tags", "batch_dim_axis", "time_dim_axis", "vocab", "feature_dim_axis", "batch",
    "beam",
    "available_for_inference", "placeholder", "size_placeholder", "same_dim_tags_as", "control_flow_ctx",
)  # fmt: skip


def template_from_options(
    name: str,
    dtype: str | None,
    sparse_dim: Dim | None,
    feature_dim: Dim | None,
    feature_dim_axis: Any,
    options: dict[str, Any],
) -> Template:
    """Work out the dims of an old-style tensor (`dim`, `shape`, `sparse`, ..., or `dim_tags`).

    Raises:
        TypeError: an option that does not exist.
        AssertionError: (RETURNN's class) neither `dim` nor `shape` is given, or vocabulary and `dim` contradict
        each other.
    """
    for option in options:
        if option not in _OPTIONS:
            near = difflib.get_close_matches(option, [*_OPTIONS, "dims", "dtype", "sparse_dim"], n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"'{name}': unknown option '{option}'{hint} known are {sorted(_OPTIONS)}")
    dim, sparse_dim = _sparse_dim(name, sparse_dim, options)
    sparse = sparse_dim is not None
    dtype = dtype or ("int32" if sparse else "float32")
    if options.get("dim_tags") is not None:
        dims = tuple(options["dim_tags"])
    else:
        dims = _dims_from_shape(name, dim, sparse, feature_dim, feature_dim_axis, options)
    time = _time_dim(dims, options.get("time_dim_axis", NotSpecified), options.get("shape"))
    return Template(dims, dtype, sparse_dim, _feature_dim(dims, sparse, feature_dim, feature_dim_axis, time), time, 1)


def _sparse_dim(name: str, sparse_dim: Dim | None, options: dict[str, Any]) -> tuple[int | None, Dim | None]:
    dim, vocab = options.get("dim", NotSpecified), vocabulary(name, options.get("vocab"))
    sparse = options.get("sparse")
    if isinstance(dim, Dim):
        if sparse:
            return dim.dimension, dim
        dim = dim.dimension
    labels = _num_labels(name, vocab)
    if labels is not None:
        if dim not in (NotSpecified, None, labels):
            raise AssertionError(f"'{name}': dim={dim} contradicts the vocabulary, which has {labels} labels")
        dim = labels
    known_dim = None if dim is NotSpecified else dim
    set_vocab(sparse_dim, vocab)
    if sparse is False or (sparse is None and vocab is None) or sparse_dim is not None:
        return (sparse_dim.dimension if sparse_dim is not None else known_dim), sparse_dim
    if dim is NotSpecified:
        raise AssertionError(f"'{name}': a sparse stream needs `dim` (the number of classes), `sparse_dim` or `vocab`")
    return known_dim, Dim(known_dim, name=f"{name}:sparse-dim", kind=Dim.Types.Feature, vocab=vocab)


def set_vocab(sparse_dim: Dim | None, vocab: Any) -> None:
    """The classes' dim knows their names, unless it did before."""
    if sparse_dim is not None and vocab is not None and sparse_dim.vocab is None:
        sparse_dim.vocab = vocab


def vocabulary(name: str, vocab: Any) -> Any:
    """A vocabulary object from an option dict; None and an object stay."""
    if not isinstance(vocab, Mapping):
        return vocab
    if ambient.make_vocab is None:
        raise ValueError(f"'{name}': vocab={vocab!r}: a dict needs a RETURNN configuration around it; pass the object")
    return ambient.make_vocab(vocab)


def _num_labels(name: str, vocab: Any) -> int | None:
    if vocab is None:
        return None
    if hasattr(vocab, "labels"):
        return len(vocab.labels)
    if hasattr(vocab, "num_labels"):
        return int(vocab.num_labels)
    raise TypeError(f"'{name}': vocab must be a vocabulary object with labels, not {vocab!r}")


def _dims_from_shape(
    name: str, dim: int | None, sparse: bool, feature_dim: Dim | None, feature_axis: Any, options: dict[str, Any]
) -> tuple[Dim, ...]:
    shape: Sequence[int | None] | None = options.get("shape")
    batch_axis = options.get("batch_dim_axis", 0)
    given_feature_axis = feature_axis if isinstance(feature_axis, int) else None
    if shape is None:
        if not sparse and feature_dim is None and "dim" not in options:
            raise AssertionError(f"'{name}': needs `dim` (features, or classes if sparse), `shape`, `dims` or `vocab`")
        time_axis = options.get("time_dim_axis", NotSpecified)
        shape = () if time_axis is None else (None,)
        if not sparse:
            position = len(shape)
            if given_feature_axis is not None:
                position = given_feature_axis - (batch_axis is not None and batch_axis < given_feature_axis)
            shape = (*shape[:position], feature_dim.dimension if feature_dim else dim, *shape[position:])
    dims = _named_dims(name, tuple(shape), sparse, feature_dim)
    if batch_axis is not None:
        dims.insert(batch_axis, batch_dim)
    return tuple(dims)


def _named_dims(name: str, shape: tuple[int | None, ...], sparse: bool, feature_dim: Dim | None) -> list[Dim]:
    static = [axis for axis, size in enumerate(shape) if size is not None]
    feature_axis = static[-1] if static and not sparse else None
    dims: list[Dim] = []
    for axis, size in enumerate(shape):
        first_dynamic = size is None and None not in shape[:axis]
        if axis == feature_axis:
            dims.append(feature_dim or Dim(size, name=f"feature:{name}", kind=Dim.Types.Feature))
        elif size is None:
            kind = "time" if first_dynamic else f"spatial{axis}"
            dims.append(Dim(None, name=f"{kind}:var-unk:{name}", kind=Dim.Types.Spatial))
        else:
            dims.append(Dim(size, name=f"spatial{axis}:static{size}:{name}", kind=Dim.Types.Spatial))
    return dims


def _time_dim(dims: tuple[Dim, ...], time_axis: Any, shape: Any) -> Dim | None:
    if time_axis is None:
        return None
    if isinstance(time_axis, int):
        return dims[time_axis]
    return next((d for d in dims if not d.is_batch_dim() and d.dimension is None), None)


def _feature_dim(
    dims: tuple[Dim, ...], sparse: bool, feature_dim: Dim | None, feature_axis: Any, time: Dim | None
) -> Dim | None:
    if feature_dim is not None:
        return feature_dim
    if feature_axis is None or (sparse and not isinstance(feature_axis, int)):
        return None
    if isinstance(feature_axis, int):
        return dims[feature_axis]
    static = [d for d in dims if not d.is_batch_dim() and d is not time and d.dimension is not None]
    return static[-1] if static else None
