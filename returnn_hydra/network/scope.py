"""Values of the layers of one network dict during one pass; layers are computed when they are first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import NetworkError, nearest
from returnn_hydra.network.losses import report_loss
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.net import LayerSpec, Net, split_extra
from returnn_hydra.network.norms import batch_norm
from returnn_hydra.network.parameters import ParameterStore
from returnn_hydra.network.run_state import RunState

if TYPE_CHECKING:
    from returnn_hydra.network.rec.step import StepScope

NO_AXES: frozenset[Axis] = frozenset()


class Scope:
    """The layers of one (sub-)network in one pass.

    Args:
        net: the prepared dict.
        run: modes and batch.
        store: parameters.
        parent: scope of the network around it (`base:`).
        data: streams that this network sees instead of the external ones (`data`).
        param_prefix: in front of the layers' names in the names of parameters.
        hidden: axes that count as batch here.
    """

    step: StepScope | None = None
    loop_axis: Axis | None = None
    is_extra = False

    def __init__(
        self,
        net: Net,
        run: RunState,
        store: ParameterStore,
        *,
        parent: Scope | None = None,
        data: Mapping[str, NamedTensor] | None = None,
        param_prefix: str = "",
        hidden: frozenset[Axis] = NO_AXES,
        trainable: bool = True,
        reuse_prefix: str | None = None,
    ) -> None:
        self.net = net
        self.run = run
        self.store = store
        self.parent = parent
        self.data_override = dict(data or {})
        self.param_prefix = param_prefix
        self.hidden = hidden
        self.trainable = trainable
        self.reuse_prefix = reuse_prefix
        self.values: dict[str, NamedTensor] = {}
        self.children: dict[str, Scope] = {}
        self._active: list[str] = []
        self.with_gradients = torch.is_grad_enabled()
        if parent is not None:
            self.is_extra = parent.is_extra
            self.step = parent.step
            self.loop_axis = parent.loop_axis

    @property
    def all_hidden(self) -> frozenset[Axis]:
        """Axes that count as batch here: those of the loops around."""
        return self.hidden

    @property
    def reports_losses(self) -> bool:
        return self.parent.reports_losses if self.parent is not None else self.run.with_losses

    @property
    def default_target(self) -> str:
        return str(self.run.user.get("target") or "classes")

    # --- looking up

    def get(self, ref: Any) -> NamedTensor:
        """A layer or stream by the name used in `from`.

        Raises:
            NetworkError: there is none; the message has the nearest name.
        """
        if isinstance(ref, NamedTensor):
            return ref
        if not isinstance(ref, str):
            raise NetworkError(f"{self.net.path or 'network'}: {ref!r} is no name of a layer")
        if ref in self.net:
            return self.layer(ref)
        if ref == "data" or ref.startswith("data:"):
            return self.data(ref.removeprefix("data").removeprefix(":") or "data")
        if ref.startswith("base:"):
            if self.parent is None:
                raise NetworkError(f"{ref!r}: there is no network around this one")
            return self.parent.get(ref.removeprefix("base:"))
        if ref.startswith("prev:"):
            return self.previous(ref.removeprefix("prev:"))
        if ref == ":i":
            return self.step_index()
        if ref.startswith("layer:"):
            return self.get(ref.removeprefix("layer:"))
        if self.parent is not None and split_extra(ref):
            return self.parent.get(ref)
        if "/" in ref:
            return self.sub_layer(ref)
        raise NetworkError(f"{self.net.path or 'network'}: there is no layer {ref!r}{nearest(ref, self.net.layers)}")

    def data(self, key: str) -> NamedTensor:
        if key in self.data_override:
            return self.data_override[key]
        if self.parent is not None:
            return self.parent.data(key)
        if key not in self.run.data:
            raise NetworkError(f"there is no stream {key!r} in the batch{nearest(key, self.run.data)}")
        return self.run.data[key]

    def target(self, key: str) -> NamedTensor:
        """What `target` names: a stream, or `layer:NAME`."""
        if key.startswith("layer:"):
            return self.get(key.removeprefix("layer:"))
        if key.startswith("data:"):
            key = key.removeprefix("data:")
        return self.data(key)

    def target_spec(self, key: str) -> tuple[int | None, object]:
        """Number of classes (or features) and vocabulary of a target, also when the batch lacks it."""
        specs = self.run.user.get("extern_data", {})
        if key in specs and key not in self.run.data:
            return specs[key].dim, specs[key].vocab
        target = self.target(key)
        return target.dim, target.vocab

    def outward(self, value: NamedTensor) -> NamedTensor:
        return self.parent.outward(value) if self.parent is not None else value

    def exposed(self, ref: str) -> NamedTensor:
        """A layer as the network around sees it."""
        return self.get(ref)

    def previous(self, name: str) -> NamedTensor:
        if self.step is not None:
            return self.step.previous_of(self, name)
        raise NetworkError(f"'prev:{name}' is only there inside a rec layer")

    def step_index(self) -> NamedTensor:
        if self.parent is None:
            raise NetworkError("':i' is only there inside a rec layer")
        return self.parent.step_index()

    def sub_layer(self, ref: str) -> NamedTensor:
        """`layer/part`."""
        name, _, rest = ref.partition("/")
        value = self.get(name)
        if value.parts and rest in value.parts:
            return value.parts[rest]
        if name in self.children:
            return self.children[name].exposed(rest)
        raise NetworkError(f"{ref!r}: layer {name!r} has no part {rest!r}{nearest(rest, value.parts or ())}")

    # --- computing

    def layer(self, name: str) -> NamedTensor:
        """A layer of this network, computed once per pass."""
        if name in self.values:
            return self.values[name]
        if name in self._active:
            chain = " -> ".join([*self._active[self._active.index(name) :], name])
            raise NetworkError(f"{self.net.path}{name}: the layers need each other: {chain}")
        self._active.append(name)
        try:
            with torch.set_grad_enabled(self.with_gradients):  # also if a loop without gradients asks first
                value = self.compute(self.net.spec(name))
        finally:
            self._active.pop()
        self.values[name] = value
        return value

    def compute(self, spec: LayerSpec) -> NamedTensor:
        call = LayerCall(self, spec)
        value = spec.known.function(call, **spec.arguments)
        if not isinstance(value, NamedTensor):
            raise NetworkError(f"{spec.path}: class {spec.known.name!r} gave a {type(value).__name__}")
        value = self._finish(call, value)
        self.after_layer(spec, call, value)
        return value

    def _finish(self, call: LayerCall, value: NamedTensor) -> NamedTensor:
        options = call.options.get("batch_norm")
        if options:
            value = batch_norm(call, value, **(dict(options) if isinstance(options, Mapping) else {}))
        declared = call.options.get("n_out")
        if isinstance(declared, int) and value.dim is not None and value.dim != declared:
            raise call.error(f"n_out = {declared}, but the output has {value.dim} features")
        return value

    def after_layer(self, spec: LayerSpec, call: LayerCall, value: NamedTensor) -> None:
        """Report what a computed layer adds to the objective; layers at one frame of a loop only leave their value."""
        if self.step is not None:
            self.step.by_path[spec.path] = value
            if self.run.with_losses:
                self.add_constraints(spec, call.param_path)
            return
        self.run.outputs.setdefault(spec.path, self.outward(value))
        name = spec.options.get("register_as_extern_data")
        if name:
            self.run.data[name] = value
        if self.run.with_losses:
            if spec.options.get("loss") and self.reports_losses:
                report_loss(call, value)
            self.add_constraints(spec, call.param_path)

    def add_constraints(self, spec: LayerSpec, param_path: str) -> None:
        """`L2`: c times the sum of the squares of all parameters of the layer."""
        weight = spec.options.get("L2")
        if not weight or spec.path in self.run.constraints:
            return
        parameters = self.store.below(param_path)
        if parameters:
            exact = [p if p.dtype == torch.float64 else p.float() for p in parameters]
            total: Tensor = torch.stack([parameter.square().sum() for parameter in exact]).sum()
            self.run.constraints[spec.path] = weight * total

    def release(self) -> None:
        """Let go of all values: scopes hold each other, and would keep the memory until the next garbage collection."""
        for child in self.children.values():
            child.release()
        self.values.clear()
        self.children.clear()
        self.data_override.clear()
        self.step = None

    # --- networks inside

    def child(self, name: str, net: Net, param_prefix: str, **options: Any) -> Scope:
        """A scope for the network inside one of our layers."""
        return self.adopt(
            name,
            Scope(
                net, self.run, self.store, parent=self, param_prefix=param_prefix, **{"hidden": self.hidden, **options}
            ),
        )

    def adopt(self, name: str, scope: Scope) -> Scope:
        self.children[name] = scope
        return scope

    def param_path_of(self, ref: str, where: str) -> str:
        """Where the parameters of a layer stand, for `reuse_params`; the layer is computed if it was not yet."""
        if ref.startswith("base:") and self.parent is not None:
            return self.parent.param_path_of(ref.removeprefix("base:"), where)
        name, _, rest = ref.partition("/")
        if name not in self.net:
            if self.parent is not None and self.parent.step is not None:
                return self.parent.param_path_of(ref, where)
            raise NetworkError(f"{where}: reuse_params: there is no layer {ref!r}{nearest(ref, self.net.layers)}")
        path = f"{self.param_prefix}{name}"
        if rest:
            inner = "rec/" if self.net.spec(name).known.name == "rec" else ""
            return f"{path}/{inner}{rest}"
        if self.run.building and not self.store.by_layer.get(path) and name not in self._active:
            self.get(name)
        return path
