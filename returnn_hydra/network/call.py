"""What a layer function sees: its sources, options, parameters and the modes of the pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis, feature_axis
from returnn_hydra.network.axis_strings import AxisFinder
from returnn_hydra.network.dropout import check_rate, drop, mask_axes
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.named_tensor import NamedTensor, common_axes, unify
from returnn_hydra.network.parameters import noisy

if TYPE_CHECKING:
    from returnn_hydra.network.net import LayerSpec
    from returnn_hydra.network.run_state import RunState
    from returnn_hydra.network.scope import Scope


COPY_MODES = (None, "ifpossible", "subset", "reset")
LOSSES_WITHOUT_TARGET = ("as_is", "search_score", "via_layer")


class LayerCall:
    """One computation of one layer."""

    def __init__(self, scope: Scope, spec: LayerSpec) -> None:
        self.scope = scope
        self.spec = spec
        self.name = spec.name
        self.path = spec.path
        self.options = spec.options
        self.run: RunState = scope.run
        self.finder = AxisFinder(f"{spec.path} ({spec.known.name})", scope.all_hidden)

    # --- sources

    @cached_property
    def sources(self) -> list[NamedTensor]:
        """The sources, one by one."""
        return [self.scope.get(source) for source in self.spec.sources]

    @cached_property
    def x(self) -> NamedTensor:
        """All sources concatenated along the feature axis, after dropout."""
        return self._dropped(self._with_in_dim(self.concat(self.sources)))

    def concat(self, sources: Sequence[NamedTensor]) -> NamedTensor:
        if not sources:
            raise self.error("needs a source ('from')")
        if len(sources) == 1:
            return sources[0]
        return concat_features(sources, self.scope.all_hidden, self.path)

    def _with_in_dim(self, x: NamedTensor) -> NamedTensor:
        """`in_dim`: which axis has the features."""
        given = self.options.get("in_dim")
        size = getattr(given, "dimension", given)
        if size is None or x.dim == size:
            return x
        found = [axis for axis in x.axes if axis.size == size and not (axis.is_dynamic or axis.is_batch_like)]
        if len(found) != 1:
            raise self.error(f"in_dim = {given!r} is none, or several, of the axes {list(x.axes)}")
        return x.like(x.raw, feature=found[0])

    def _dropped(self, x: NamedTensor) -> NamedTensor:
        rate = self.options.get("dropout")
        if not rate or not (self.run.train or self.options.get("dropout_on_forward")) or self.run.building:
            return x
        axes = mask_axes(x, self.finder, self.options.get("dropout_axis"), self.options.get("dropout_noise_shape"))
        return drop(x, check_rate(rate, self.path), axes)

    def layer(self, ref: str) -> NamedTensor:
        """Another layer, by the name an option gives."""
        return self.scope.get(ref)

    # --- modes

    @property
    def train(self) -> bool:
        return self.run.train

    @property
    def device(self) -> torch.device:
        return self.run.device

    # --- axes

    def axis(self, x: NamedTensor, spec: Any) -> Axis:
        return self.finder.one(x, spec)

    def axes(self, x: NamedTensor, spec: Any) -> list[Axis]:
        return self.finder.all(x, spec)

    def time(self, x: NamedTensor) -> Axis:
        found = self.finder.time(x)
        if found is None:  # windows of frames: the only axis besides batch and features
            others = [a for a in self.finder.visible(x) if not a.is_batch_like and a is not x.feature]
            found = others[0] if len(others) == 1 else None
        if found is None:
            raise self.error(f"needs a time axis, but the input has {list(x.axes)}")
        return found

    def feature(self, x: NamedTensor) -> Axis:
        if x.feature is None:
            raise self.error(f"needs a feature axis, but the input has {list(x.axes)}")
        return x.feature

    def feature_left(self, x: NamedTensor, axes: Sequence[Axis]) -> Axis | None:
        """The feature axis where only `axes` of x are left: its own, else the last static one, as in RETURNN."""
        if x.feature is None or x.feature in axes:
            return x.feature
        hidden = self.scope.all_hidden
        static = [a for a in axes if not (a.is_batch_like or a.is_dynamic or a in hidden)]
        return static[-1] if static else None

    def new_feature(self, size: int, name: str = "feature") -> Axis:
        """The feature axis that this layer makes; the same object in every call of one pass."""
        key = (self.path, name, int(size))
        axes = self.run.batch.derived("new axes", lambda: Axis("new", 0))
        return axes.derived(key, lambda: feature_axis(f"{self.name}:{name}-dense", size))

    # --- options

    @cached_property
    def n_out(self) -> int | None:
        """Number of outputs: `n_out`, else the number of classes of the target."""
        value = self.options.get("n_out", self.options.get("out_dim"))
        if value is not None:
            size = getattr(value, "dimension", value)
            if not isinstance(size, int):
                raise self.error(f"n_out = {value!r}, expected a number")
            return size
        out_type = self.options.get("out_type")
        if isinstance(out_type, Mapping) and isinstance(out_type.get("dim"), int):
            return int(out_type["dim"])
        if self.needs_target or self.options.get("target"):
            dim = self.scope.target_spec(self.default_target())[0]
            if dim is not None:
                return dim + 1 if self.options.get("loss") == "ctc" else dim
        return None

    @property
    def needs_target(self) -> bool:
        """Is there a loss that compares with a target?"""
        loss = self.options.get("loss")
        return loss is not None and loss not in LOSSES_WITHOUT_TARGET

    def default_target(self) -> str:
        target = self.options.get("target")
        if isinstance(target, (list, tuple)):
            target = target[0] if target else None
        return target or self.scope.default_target

    def need_n_out(self) -> int:
        if self.n_out is None:
            raise self.error("option 'n_out' is missing (and there is no target that would tell)")
        return self.n_out

    # --- parameters

    @property
    def param_path(self) -> str:
        scope_name = self.options.get("name_scope")
        if scope_name is None:
            return f"{self.scope.param_prefix}{self.name}"
        if scope_name.startswith("/"):
            return scope_name.strip("/")
        return f"{self.scope.param_prefix}{scope_name}".strip("/")

    def param(
        self,
        name: str,
        shape: Sequence[int],
        init: Any = "glorot_uniform",
        trainable: bool = True,
        buffer: bool = False,
        blocks: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """The parameter `<layer>/<name>`; made when the network is built.

        Args:
            init: number, name, expression or array; see `initializers`.
            trainable: the layer's option `trainable` can only switch it off.
            buffer: running statistics.
            blocks: for every axis the sizes of the parts that it consists of, if they are several.
        """
        reused = self._reused(name)
        store = self.scope.store
        if reused is not None:
            parameter = store.require(reused, self.path)
            if tuple(parameter.shape) != tuple(shape):
                raise self.error(f"reuse_params: {reused} has shape {tuple(parameter.shape)}, needed is {tuple(shape)}")
        else:
            trainable = trainable and self.options.get("trainable", True) is not False and self.scope.trainable
            parameter = store.get(self.param_path, name, tuple(shape), init, trainable, buffer)
            if self.run.building:
                self._note_how_to_copy(f"{self.param_path}/{name}".lstrip("/"), blocks)
        if self.run.train and not self.run.building and not buffer:
            noise = self.given("param_variational_noise", self.run.user.get("param_variational_noise") or 0)
            rate = self.given("param_dropout", self.run.user.get("param_dropout") or 0)
            if noise or rate:
                parameter = noisy(parameter, noise, rate, self.options.get("param_dropout_min_ndim") or 0)
        return parameter

    def _note_how_to_copy(self, path: str, blocks: Sequence[Sequence[int]] | None) -> None:
        if blocks is not None:
            self.scope.store.blocks[path] = blocks
        mode = self.options.get("custom_param_importer")
        if mode is None:
            return
        if mode not in COPY_MODES:
            raise self.error(f"custom_param_importer = {mode!r} is not supported; expected one of {COPY_MODES[1:]}")
        self.scope.store.copy_modes[path] = mode

    def _reused(self, name: str) -> str | None:
        """Path of the parameter of another layer to use instead of an own one."""
        spec = self.options.get("reuse_params")
        if not spec:
            return self._inherited_reuse(name)
        if isinstance(spec, str):
            return f"{self.scope.param_path_of(spec, self.path)}/{name}"
        if not isinstance(spec, Mapping):
            raise self.error(f"reuse_params = {spec!r} is neither a layer nor a dict")
        unknown = set(spec) - {"reuse_layer", "map", "auto_create_missing"}
        if unknown:
            raise self.error(f"reuse_params: {sorted(unknown)} is not supported; nearest: 'reuse_layer', 'map'")
        mapped = spec.get("map")
        if mapped is not None and name in mapped:
            entry = mapped[name]
            if entry is None:
                return None
            if isinstance(entry, str):
                entry = {"reuse_layer": entry}
            if "custom" in entry:
                raise self.error("reuse_params: 'custom' is not supported; nearest: 'reuse_layer'")
            return f"{self.scope.param_path_of(entry['reuse_layer'], self.path)}/{name}"
        layer = spec.get("reuse_layer")
        if layer is None:
            if mapped is not None and not spec.get("auto_create_missing"):
                raise self.error(f"reuse_params: 'map' has no entry for {name!r}")
            return None
        path = f"{self.scope.param_path_of(layer, self.path)}/{name}"
        if spec.get("auto_create_missing") and self.scope.store.find(path) is None:
            return None
        return path

    def _inherited_reuse(self, name: str) -> str | None:
        """Inside a sub-network that reuses the parameters of another one."""
        base = self.scope.reuse_prefix
        return None if base is None else f"{base}{self.name}/{name}"

    # --- state in loops

    @property
    def stepping(self) -> bool:
        """Are we at one frame of a loop?"""
        return self.scope.step is not None

    def state(self) -> dict[str, NamedTensor] | None:
        """The layer's state after the previous frame; None at the first."""
        assert self.scope.step is not None
        return self.scope.step.state_of(self.path)

    def set_state(self, state: dict[str, NamedTensor]) -> None:
        assert self.scope.step is not None
        self.scope.step.new_states[self.path] = state

    @property
    def loop_axis(self) -> Axis | None:
        """The axis of all frames, where a layer of a loop is computed for all at once."""
        return self.scope.loop_axis

    def release(self) -> None:
        """Let go of the sources."""
        for name in ("x", "sources"):
            self.__dict__.pop(name, None)

    def given(self, option: str, default: Any) -> Any:
        """The layer's option, also if it is 0 or False; where it is None or missing, the default."""
        value = self.options.get(option)
        return default if value is None else value

    def error(self, message: str) -> NetworkError:
        return NetworkError(f"{self.path} (class {self.spec.known.name!r}): {message}")


def concat_features(sources: Sequence[NamedTensor], hidden: frozenset[Axis], where: str) -> NamedTensor:
    """Join along the feature axes; axes that a source lacks are broadcast."""
    for source in sources:
        if source.feature is None:
            raise NetworkError(f"{where}: cannot concatenate, a source has no feature axis: {list(source.axes)}")
    features = [source.feature for source in sources if source.feature is not None]
    # the features take no part in the matching of axes: each hides behind an axis of its own
    parts = [Axis("part", feature.size) for feature in features]
    renamed = [
        source.relabelled(feature, part).dense(source.raw, _replaced(source.axes, feature, part))
        for source, feature, part in zip(sources, features, parts, strict=True)
    ]
    unified = unify(renamed, hidden | frozenset(parts))
    shared = [axis for axis in common_axes(unified) if axis not in parts]
    raw = torch.cat([tensor.expanded([*shared, part]) for tensor, part in zip(unified, parts, strict=True)], dim=-1)
    key = ("concat", *features)
    size = sum(feature.size for feature in features)
    joined = features[0].derived(key, lambda: feature_axis("+".join(f.name for f in features), size))
    time = next((tensor.time for tensor in unified if tensor.time is not None), None)
    return NamedTensor(raw, (*shared, joined), feature=joined, time=time)


def _replaced(axes: Sequence[Axis], old: Axis, new: Axis) -> tuple[Axis, ...]:
    return tuple(new if axis is old else axis for axis in axes)
