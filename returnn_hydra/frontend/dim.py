"""Dims: named axes. A dim is static (a size), dynamic (one length per sequence), or not yet known.

Lengths live on the CPU as int32, in a tensor `dyn_size_ext` whose own dims say what they depend on (usually the batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from returnn_hydra.frontend import dim_algebra as algebra

if TYPE_CHECKING:
    from returnn_hydra.frontend.tensor import Tensor


class VerifyOutShapeException(Exception):
    """The dims of a tensor are not those that were expected."""


class _Kinds:
    """What an axis is; only a hint, except for the batch."""

    Unspecified = None

    class Batch:
        name = "batch"

    class Spatial:
        name = "spatial"

    Time = Spatial

    class Feature:
        name = "feature"


class Dim:
    """A named axis.

    Args:
        dimension: static size; a tensor of lengths (dynamic); None: known later.
        name: for messages only; two dims with one name are still two dims.
        dyn_size_ext: the lengths, if `dimension` is None.
        capacity: size of the axis in memory, at least that of the longest sequence; default: just that.
        bounded_by: a dim that is never shorter; for RETURNN's sizes that are fixed before a run, of no effect here.
        kind: one of `Dim.Types`.
        match_priority: tells two uses of one dim in one tensor apart (`copy(match_priority=1)`). The copies are equal;
            where the dim is named, the use with the highest priority is meant.
    """

    Types = _Kinds

    def __init__(
        self,
        dimension: int | Tensor | None,
        *,
        name: str | None = None,
        capacity: int | None = None,
        dyn_size_ext: Tensor | None = None,
        description: str | None = None,
        kind: Any = None,
        vocab: Any = None,
        match_priority: int = 0,
        special: bool = False,
        auto_generated: bool = False,
        batch: Any = None,
        bounded_by: Dim | None = None,
        derived: Any = None,
    ) -> None:
        if dimension is not None and not isinstance(dimension, int):
            if not hasattr(dimension, "raw_tensor"):
                raise TypeError(f"Dim: dimension must be an int, a Tensor of lengths or None, not {dimension!r}")
            dyn_size_ext = dimension
            dimension = None
        if name is None and description is None and dyn_size_ext is not None:
            name = dyn_size_ext.name
        self._size: int | None = dimension
        self._name = name or description or f"unnamed_dim{'' if dimension is None else dimension}"
        self._dyn: Tensor | None = dyn_size_ext
        self._same: Dim | None = None
        self._term = derived
        """None: a base dim."""
        self._cache: tuple[Any, Tensor] | None = None
        self._device_cache: dict[str, tuple[Any, Tensor]] = {}
        self._base: _Base | None = None
        self._original: Dim | None = None
        """The dim this one is a copy of with another match priority."""
        self._capacity = capacity
        self.kind = kind
        self.vocab = vocab
        self.match_priority = match_priority
        self.special = special
        self.auto_generated = auto_generated
        self.batch = batch

    # --- identity -----------------------------------------------------------------------------------------------

    def _root(self) -> Dim:
        dim = self
        while dim._same is not None:
            dim = dim._same
        return dim

    @property
    def term(self) -> Any:
        """What this dim is, for comparison and arithmetic: a base dim, or an operation over base dims."""
        root = self._identity()
        if root._term is not None:
            return _resolved(root._term)
        if root._base is None:
            root._base = _Base(root)
        return root._base

    def _identity(self) -> Dim:
        """The dim that this one is, behind declarations and copies."""
        dim = self._root()
        while dim._original is not None:
            dim = dim._original._root()
        return dim

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Dim):
            return NotImplemented
        mine, others = self._identity(), other._identity()
        if mine is others:
            return True
        left, right = mine._term, others._term
        # This is called very often: most dims differ already by what they are.
        if left is None or right is None or left.kind != right.kind or len(left.operands) != len(right.operands):
            return False
        return _resolved(left) == _resolved(right)

    def __hash__(self) -> int:
        return hash(self.term)

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = value

    description = name

    def get_same_base(self) -> Dim:
        """The dim this one was declared to be the same as; else itself."""
        return self._root()

    get_same_derived_base = get_same_base

    def is_equal(self, other: Dim, **_options: Any) -> bool:
        """The same dim."""
        return self == other

    def declare_same_as(self, other: Dim) -> None:
        """From now on this dim is `other`: same identity, same lengths."""
        target = other._root()
        if target is self._root():
            return
        if not target.is_dim_known() and self.is_dim_known():
            self._root()._same, target._same = None, self._root()
            return
        root = self
        root._same = target

    def derive_from(self, base: Dim, *, set_derived_from_flag: bool = True) -> None:
        """Take the lengths of `base`; stays another dim."""
        self._size, self._dyn = base.dimension, base.dyn_size_ext

    def copy_from(self, other: Dim) -> None:
        """Become another dim with the sizes of `other`."""
        self._same, self._term, self._cache = None, None, None
        self.derive_from(other)

    def copy(self, same_as_self: bool = True, description: str | None = None, kind: Any = None,
             match_priority: int | None = None) -> Dim:  # fmt: skip
        """A copy: the same dim (maybe with another `match_priority`), or with `same_as_self=False` a new one."""
        new = Dim(
            self.dimension,
            name=description or self.name,
            kind=self.kind if kind is None else kind,
            vocab=self.vocab,
            match_priority=self.match_priority if match_priority is None else match_priority,
        )
        if same_as_self:
            new._original = self
        else:
            new._dyn = self.dyn_size_ext
        return new

    def __copy__(self) -> Dim:
        return self

    def __deepcopy__(self, memo: Any) -> Dim:
        """A dim is an identity: copies of a module keep it."""
        return self

    # --- sizes --------------------------------------------------------------------------------------------------

    @property
    def dimension(self) -> int | None:
        """Static size; None: dynamic or unknown."""
        root = self._root()
        if root._original is not None:
            return root._original.dimension
        return root._size

    @property
    def size(self) -> int | None:
        """The same as `dimension`."""
        return self.dimension

    @size.setter
    def size(self, value: int | None) -> None:
        self._root()._size = value

    @property
    def capacity(self) -> int | None:
        """Size of the axis in memory, if it was given or is static."""
        capacity = self._identity()._capacity
        return self.dimension if capacity is None else capacity

    @property
    def dyn_size_ext(self) -> Tensor | None:
        """The lengths; None for a static or unknown dim."""
        root = self._root()
        if root._original is not None:
            return root._original.dyn_size_ext
        if root._dyn is None and root._term is not None and root._size is None:
            return root._derived_lengths()
        return root._dyn

    @dyn_size_ext.setter
    def dyn_size_ext(self, value: Tensor | None) -> None:
        root = self._root()
        (root._original or root)._dyn = value

    @property
    def dyn_size(self) -> torch.Tensor | None:
        """The lengths as a torch tensor."""
        lengths = self.dyn_size_ext
        return None if lengths is None else lengths.raw_tensor

    @dyn_size.setter
    def dyn_size(self, value: torch.Tensor) -> None:
        from returnn_hydra.frontend.tensor import Tensor

        self.dyn_size_ext = Tensor(self.name, dims=[batch_dim], dtype="int32", raw_tensor=value.to(torch.int32))

    def _derived_lengths(self) -> Tensor | None:
        """The lengths of a derived dim, from those of its bases; recomputed when theirs change."""
        from returnn_hydra.frontend.tensor import Tensor

        parts = [base.dim for base in algebra.bases(self._term)]
        lengths = [dim.dyn_size_ext for dim in parts if dim.dimension is None]
        if any(length is None or length.raw_tensor is None for length in lengths):
            return None
        raws = [length.raw_tensor for length in lengths if length is not None]
        if self._cache is not None and all(a is b for a, b in zip(self._cache[0], raws, strict=True)):
            return self._cache[1]

        def value_of(base: _Base) -> Any:
            return base.dim.dimension if base.dim.dimension is not None else base.dim.dyn_size_ext

        def maximum(value: Any, least: int) -> Any:
            if isinstance(value, int):
                return max(value, least)
            raw = value.raw_tensor.clamp(min=least)
            return Tensor(value.name, dims=value.dims, dtype=value.dtype, raw_tensor=raw)

        result = algebra.evaluate(self._term, value_of, maximum)
        self._cache = (raws, result)
        return result

    def is_dim_known(self) -> bool:
        """Whether its size or its lengths are known."""
        if self.special:
            return True
        lengths = self.dyn_size_ext
        return self.dimension is not None or (lengths is not None and lengths.raw_tensor is not None)

    def is_static(self) -> bool:
        return self.dimension is not None

    def is_dynamic(self) -> bool:
        return self.dimension is None and not self.special

    def is_dynamic_seq_length(self) -> bool:
        """It has one length per sequence (or per something)."""
        lengths = self.dyn_size_ext
        return self.dimension is None and lengths is not None and bool(lengths.dims)

    def need_masking(self) -> bool:
        """Whether some sequences are shorter than the axis, i.e. there is padding."""
        if self.dimension is not None:
            return False
        lengths = self.dyn_size_ext
        return self._identity()._capacity is not None or (lengths is not None and bool(lengths.dims))

    def is_batch_dim(self) -> bool:
        return self.kind is Dim.Types.Batch

    def is_feature_dim(self) -> bool:
        return self.kind is Dim.Types.Feature

    def is_spatial_dim(self) -> bool:
        return self.kind in (None, Dim.Types.Spatial)

    def can_be_used_as_dim(self) -> bool:
        return not self.special

    def is_constant_static_dim(self) -> bool:
        return self.dimension is not None

    @property
    def derived_from_op(self) -> Any:
        """The operation (kind, operands) this dim was derived by; None for a base dim."""
        return self._root()._term

    def get_dim_value(self) -> int:
        """The size, the capacity, or the longest length.

        Raises:
            ValueError: neither is known.
        """
        if self.dimension is not None:
            return self.dimension
        capacity = self._identity()._capacity
        if capacity is not None:
            return capacity
        lengths = self.dyn_size_ext
        if lengths is None or lengths.raw_tensor is None:
            raise ValueError(f"{self}: neither a static size nor sequence lengths are known yet")
        return int(lengths.raw_tensor.max()) if 0 not in lengths.raw_tensor.shape else 0

    def get_dim_value_tensor(self) -> int | Tensor:
        """The size as int, or the longest length as a scalar tensor."""
        from returnn_hydra.frontend.tensor import Tensor

        if self.dimension is not None:
            return self.dimension
        raw = torch.tensor(self.get_dim_value(), dtype=torch.int32)
        return Tensor(self.name, dims=[], dtype="int32", raw_tensor=raw)

    def get_size_tensor(self, *, device: str | None = None) -> Tensor:
        """The lengths (or the static size) as int32 tensor."""
        from returnn_hydra.frontend.tensor import Tensor

        if self.dimension is not None:
            raw = torch.tensor(self.dimension, dtype=torch.int32, device=device or "cpu")
            return Tensor(f"{self.name}:size", dims=[], dtype="int32", raw_tensor=raw)
        return self.get_dyn_size_ext_for_device(device)

    def get_size_tensor_or_int(self, *, device: str | None = None) -> int | Tensor:
        return self.dimension if self.dimension is not None else self.get_size_tensor(device=device)

    def get_dyn_size_ext_for_device(self, device: str | None) -> Tensor:
        """The lengths on `device`; copied there once."""
        from returnn_hydra.frontend.tensor import Tensor

        lengths = self.dyn_size_ext
        if lengths is None or lengths.raw_tensor is None:
            raise ValueError(f"{self}: its sequence lengths are not known yet")
        if device in (None, "cpu") or torch.device(str(device)) == lengths.raw_tensor.device:
            return lengths
        cached = self._device_cache.get(str(device))
        if cached is None or cached[0] is not lengths.raw_tensor:
            raw = lengths.raw_tensor.to(device, non_blocking=True)
            cached = (lengths.raw_tensor, Tensor(self.name, dims=lengths.dims, dtype=lengths.dtype, raw_tensor=raw))
            self._device_cache[str(device)] = cached
        return cached[1]

    def get_mask(
        self, *, dim_order: Sequence[Dim] | None = None, device: str | None = None, like: Any = None
    ) -> Tensor:
        """True for real frames, False for padding: dims of the lengths, then this dim; before them `dim_order`'s."""
        from returnn_hydra.frontend.tensor import Tensor

        if like is not None and device is None:
            device = like.device
        lengths = self.get_size_tensor(device=device)
        assert lengths.raw_tensor is not None
        positions = torch.arange(self.get_dim_value(), device=lengths.raw_tensor.device)
        raw = positions < lengths.raw_tensor[..., None]
        mask = Tensor("mask", dims=[*lengths.dims, self], dtype="bool", raw_tensor=raw)
        if not dim_order:
            return mask
        first = [dim for dim in dim_order if dim in mask.dims]
        return mask.copy_transpose([*first, *(dim for dim in mask.dims if dim not in first)])

    def reset_raw(self, *, only_self: bool = False, include_parents: bool = False) -> None:
        """Forget the lengths; what they depend on stays known."""
        root = self._root()
        if root._size is None and root._dyn is not None:
            root._dyn = root._dyn.copy_template()

    def reset_eager(self) -> None:
        """Forget the lengths."""
        self.reset_raw()

    reset_batch_ctx = reset_batch_and_raw = reset_eager

    def complete_dyn_size(self, *, template_only: bool = False, _backend: Any = None) -> None:
        """Lengths of derived dims are always complete; kept for RETURNN's callers."""

    def axis_split_info(self) -> str:
        return repr(self)

    # --- arithmetic ---------------------------------------------------------------------------------------------

    def _derive(self, term: Any) -> Dim:
        if isinstance(term, _Base):
            return term.dim
        if isinstance(term, int):
            return Dim(term, name=str(term))
        name = algebra.describe(term, lambda base: base.dim.name)
        sizes = [base.dim.dimension for base in algebra.bases(term)]
        size = None
        if None not in sizes:
            size = algebra.evaluate(term, lambda base: base.dim.dimension, max)
        kind = self.kind if self.kind is not Dim.Types.Batch else None
        return Dim(size, name=name, kind=kind, derived=term)

    def __add__(self, other: Dim | int) -> Dim:
        return self._derive(algebra.add(self.term, _operand(other)))

    def __radd__(self, other: int) -> Dim:
        return self._derive(algebra.add(_operand(other), self.term))

    def __sub__(self, other: Dim | int) -> Dim:
        return self.sub_right(other)

    def sub_right(self, other: Dim | int) -> Dim:
        """self - other; takes it off the right end of a sum."""
        return self._derive(algebra.sub_right(self.term, _operand(other)))

    def sub_left(self, other: Dim | int) -> Dim:
        """self - other; takes it off the left end of a sum."""
        return self._derive(algebra.sub_left(self.term, _operand(other)))

    def __neg__(self) -> Dim:
        return self._derive(algebra.mul(-1, self.term))

    def __mul__(self, other: Dim | int) -> Dim:
        return self._derive(algebra.mul(self.term, _operand(other)))

    def __rmul__(self, other: int) -> Dim:
        return self._derive(algebra.mul(_operand(other), self.term))

    def __floordiv__(self, other: Dim | int) -> Dim:
        return self._divide(other, "floordiv", "right")

    def __truediv__(self, other: Dim | int) -> Dim:
        return self.div_right(other)

    def div_right(self, other: Dim | int) -> Dim:
        """self / other, exactly; takes the factor off the right end of a product."""
        return self._divide(other, "truediv", "right")

    def div_left(self, other: Dim | int) -> Dim:
        """self / other, exactly; takes the factor off the left end of a product."""
        return self._divide(other, "truediv", "left")

    def ceildiv_right(self, other: Dim | int) -> Dim:
        """self / other, rounded up."""
        return self._divide(other, "ceildiv", "right")

    def ceildiv_left(self, other: Dim | int) -> Dim:
        """self / other, rounded up."""
        return self._divide(other, "ceildiv", "left")

    def _divide(self, other: Dim | int, kind: str, side: str) -> Dim:
        return self._derive(algebra.div(self.term, _operand(other), kind, side))

    # --- text ---------------------------------------------------------------------------------------------------

    def short_repr(self) -> str:
        """'B', 'time[B]', 'F(4)', ..."""
        if self is batch_dim or (self.is_batch_dim() and self.dimension is None):
            return "B"
        if self.special:
            return f"'{self.name}'!"
        if self.dimension is not None:
            return f"'{self.name}'({self.dimension})"
        lengths = self.dyn_size_ext
        inner = "?" if lengths is None else ",".join(d.short_repr() for d in lengths.dims)
        return f"'{self.name}'[{inner}]"

    def __repr__(self) -> str:
        return f"Dim{{{self.short_repr()}}}"


class _Base:
    """A base dim inside a term: equal by the identity of the dim behind it."""

    __slots__ = ("dim",)

    def __init__(self, dim: Dim) -> None:
        self.dim = dim

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Base) and self.dim._root() is other.dim._root()

    def __hash__(self) -> int:
        return id(self.dim._root())


def _resolved(term: Any) -> Any:
    """The term with every base replaced by what it was declared to be meanwhile."""
    if isinstance(term, algebra.Term):
        return algebra.Term(term.kind, tuple(_resolved(part) for part in term.operands))
    return term.dim.term if isinstance(term, _Base) else term


def _operand(value: Dim | int) -> Any:
    if isinstance(value, Dim):
        return value.term
    if isinstance(value, int):
        return value
    raise TypeError(f"arithmetic with a dim needs a Dim or an int, not {value!r}")


class MarkedDim:
    """A dim with a note for `verify_out_shape` and the like."""

    def __init__(self, tag: Dim) -> None:
        self.tag = tag


class ImplicitDim(MarkedDim):
    """A dim that a tensor depends on without having it as an axis."""


batch_dim = Dim(None, name="batch", kind=Dim.Types.Batch)
"""The batch. Its size is that of the batch being processed."""
single_step_dim = Dim(None, name="single-step", special=True)
"""Passed as axis: one step at a time, with a state."""


def dim_match_priority_when_needed(dim: Dim, *other_dims: Dim) -> Dim:
    """The dim itself; if it is among the others, a copy with a higher match priority, to tell both apart."""
    return dim.copy(match_priority=1) if dim in other_dims else dim


def FeatureDim(description: str, dimension: int | None, **options: Any) -> Dim:
    """A feature axis."""
    return Dim(dimension, name=description, kind=Dim.Types.Feature, **options)


def SpatialDim(description: str, dimension: int | None = None, **options: Any) -> Dim:
    """A time or space axis."""
    return Dim(dimension, name=description, kind=Dim.Types.Spatial, **options)
