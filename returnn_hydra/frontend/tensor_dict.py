"""A dict of tensors: the input streams of a step, or its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn_hydra.frontend.dim import Dim, batch_dim
from returnn_hydra.frontend.tensor import Tensor


class TensorDict:
    """Tensors by name. Made from tensors, or from `extern_data` options (templates).

    Raises:
        TypeError: an entry is neither.
    """

    def __init__(self, data: Any = None) -> None:
        self.data: dict[str, Tensor] = {}
        if data is not None:
            self.update(data, auto_convert=True)

    def update(self, data: Any, *, auto_convert: bool = False) -> None:
        """Add entries; with `auto_convert` option dicts become templates."""
        items = data.data if isinstance(data, TensorDict) else data
        if not isinstance(items, Mapping):
            items = {tensor.name: tensor for tensor in items}
        for name, value in items.items():
            if isinstance(value, Tensor):
                self.data[name] = value
            elif auto_convert and isinstance(value, Mapping):
                self.data[name] = Tensor(**{"name": name, **value})
            else:
                raise TypeError(
                    f"TensorDict: '{name}' must be a Tensor{' or its options' * auto_convert}, not {value!r}"
                )

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.data:
            raise KeyError(f"no '{name}' here; there are {sorted(self.data)}")
        return self.data[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.data[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Any:
        return iter(self.data)

    def __repr__(self) -> str:
        return f"TensorDict({self.data!r})"

    def keys(self) -> Any:
        return self.data.keys()

    def values(self) -> Any:
        return self.data.values()

    def items(self) -> Any:
        return self.data.items()

    def get(self, name: str, default: Any = None) -> Any:
        return self.data.get(name, default)

    def copy_template(self) -> TensorDict:
        """The same without values."""
        return TensorDict({name: tensor.copy_template() for name, tensor in self.data.items()})

    def reset_content(self) -> None:
        """Forget values and lengths."""
        for tensor in self.data.values():
            tensor.reset()
        for dim in self.all_dims():
            dim.reset_raw()

    def all_dims(self) -> list[Dim]:
        """All dims, each once."""
        dims: list[Dim] = []
        for tensor in self.data.values():
            dims += [d for d in tensor.dims if d not in dims]
        return dims

    def as_raw_tensor_dict(
        self,
        *,
        include_const_sizes: bool = False,
        include_scalar_dyn_sizes: bool = True,
        exclude_duplicate_dims: bool = False,
        expected_value_type: Any = object,
    ) -> dict[str, Any]:
        """Raw tensors by name, lengths as "<name>:size<axis>".

        Args:
            include_const_sizes: static sizes too, as ints.
            exclude_duplicate_dims: lengths of a dim only once.
        """
        result: dict[str, Any] = {}
        seen: list[Dim] = []
        for name, tensor in self.data.items():
            result[name] = tensor.raw_tensor
            for axis, dim in enumerate(tensor.dims):
                if exclude_duplicate_dims and dim in seen:
                    continue
                seen.append(dim)
                lengths = dim.dyn_size_ext
                if dim.dimension is not None:
                    if include_const_sizes:
                        result[f"{name}:size{axis}"] = dim.dimension
                elif lengths is not None and (lengths.dims or include_scalar_dyn_sizes):
                    result[f"{name}:size{axis}"] = lengths.raw_tensor
        return result

    def assign_from_raw_tensor_dict_(
        self,
        raw_tensor_dict: Mapping[str, Any],
        *,
        with_scalar_dyn_sizes: bool = True,
        duplicate_dims_are_excluded: bool = False,
    ) -> None:
        """The opposite of as_raw_tensor_dict."""
        for name, tensor in self.data.items():
            for axis, dim in enumerate(tensor.dims):
                raw = raw_tensor_dict.get(f"{name}:size{axis}")
                if raw is None or isinstance(raw, int) or dim.dimension is not None:
                    continue
                before = dim.dyn_size_ext
                dims = () if raw.ndim == 0 else (batch_dim,) if before is None else before.dims
                dim.dyn_size_ext = Tensor(
                    dim.name, dims=dims, dtype=str(raw.dtype).removeprefix("torch."), raw_tensor=raw
                )
            tensor.raw_tensor = raw_tensor_dict[name]
