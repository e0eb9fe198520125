"""What `prev:layer` is in the first frame of a loop."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.layers.edit_distance import empty_row
from returnn_hydra.network.named_tensor import NamedTensor, broadcast
from returnn_hydra.network.net import LayerSpec
from returnn_hydra.network.rec.step import Frame, StepScope
from returnn_hydra.network.scope import Scope

if TYPE_CHECKING:
    from returnn_hydra.network.rec.scope import RecScope

SAME_SHAPE = frozenset(("softmax_over_spatial", "activation", "dropout"))
"""Classes whose output has the shape of their source, whatever else they read."""
NAMED = {"zeros": 0.0, "ones": 1.0}


class InitialValues:
    """Initial outputs, and the shapes they need, which come from computing the first frame on trial."""

    def __init__(self, rec: RecScope) -> None:
        self.rec = rec
        self._values: dict[str, NamedTensor] = {}
        self.in_progress: set[str] = set()
        self._templates: dict[str, NamedTensor] = {}
        self._falling_back: set[str] = set()

    def of(self, scope: Scope, name: str) -> NamedTensor:
        """The initial output of a layer of the loop (or of a network inside of it)."""
        spec = scope.net.spec(name)
        if spec.path not in self._values:
            self._values[spec.path] = self._make(scope, spec)
        return self._values[spec.path]

    def _make(self, scope: Scope, spec: LayerSpec) -> NamedTensor:
        option = spec.options.get("initial_output")
        if isinstance(option, str) and option not in (*NAMED, "var", "apply(0)"):
            return scope.get(option)
        if option is None and spec.known.name == "edit_distance_table":
            return empty_row(LayerCall(scope, spec))
        like = self.template(scope, spec.name)
        if option is None and (like.sparse_dim is not None or _chooses_labels(spec)):
            raise NetworkError(f"{spec.path}: prev:{spec.name} is a class index; its 'initial_output' must be given")
        if option == "apply(0)":
            return self._apply_zero(scope, spec, like)
        if option == "var":
            call = LayerCall(scope, spec)
            size = call.feature(like).size
            learnt = call.param(f"init_{spec.name}_var", (size,), 0.0)
            return NamedTensor(learnt, (call.feature(like),), feature=like.feature)
        number = NAMED.get(option, option) if option is not None else 0.0
        if not isinstance(number, (int, float)):
            raise NetworkError(
                f"{spec.path}: initial_output = {option!r} is neither a number, a layer, nor {list(NAMED)}"
            )
        value = like.like(torch.full_like(like.raw, number))
        return value.like(value.raw, state=self._state(scope, spec, like))

    def _apply_zero(self, scope: Scope, spec: LayerSpec, like: NamedTensor) -> NamedTensor:
        """The layer computed on zero input."""
        call = LayerCall(scope, spec)
        zeros = []
        for source in spec.sources:
            base = self.template(scope, source) if source in scope.net else self.trial().get(source)
            zeros.append(base.like(torch.zeros_like(base.raw)))
        call.__dict__["sources"] = zeros
        result = spec.known.function(call, **spec.arguments)
        assert isinstance(result, NamedTensor)
        return result

    def _state(self, scope: Scope, spec: LayerSpec, like: NamedTensor) -> dict[str, NamedTensor] | None:
        """Hidden state before the first frame, of layers with a unit."""
        unit = spec.options.get("unit")
        if spec.known.name not in ("rnn_cell", "rec") or not isinstance(unit, str):
            return None
        from returnn_hydra.network.layers.recurrent import given_state
        from returnn_hydra.network.rec.units import state_keys

        class Keys:
            pass

        keys = Keys()
        keys.state_keys = state_keys(unit)  # type: ignore[attr-defined]
        feature = like.feature
        assert feature is not None
        batch = like.batch_axis or self.rec.run.batch
        zeros = torch.zeros(batch.size, feature.size, device=self.rec.run.device)
        call = LayerCall(scope, spec)
        given: Any = given_state(call, keys, spec.options.get("initial_state"), (batch,), feature.size, zeros)  # type: ignore[arg-type]
        parts = given or dict.fromkeys(state_keys(unit), zeros)
        return {key: NamedTensor(raw, (batch, feature), feature=feature) for key, raw in parts.items()}

    def template(self, scope: Scope, name: str) -> NamedTensor:
        """A tensor with the shape of a layer's frame."""
        spec = scope.net.spec(name)
        if spec.path not in self._templates:
            self.in_progress.add(spec.path)
            try:
                self._templates[spec.path] = self._make_template(scope, spec)
            finally:
                self.in_progress.discard(spec.path)
        return self._templates[spec.path]

    def _make_template(self, scope: Scope, spec: LayerSpec) -> NamedTensor:
        batch, device = self.rec.run.batch, self.rec.run.device
        if _chooses_labels(spec):
            dim, vocab = scope.target_spec(LayerCall(scope, spec).default_target())
            zeros = torch.zeros(batch.size, dtype=torch.int32, device=device)
            return NamedTensor(zeros, (batch,), sparse_dim=dim, vocab=vocab)
        if spec.known.name == "choice" and spec.sources[0] in scope.net:  # a regression: like what it takes
            return self.fallback(scope, scope.net.spec(spec.sources[0]))
        if _has_unit(spec):
            call = LayerCall(scope, spec)
            feature = call.new_feature(call.need_n_out())
            return NamedTensor(torch.zeros(batch.size, feature.size, device=device), (batch, feature), feature=feature)
        if scope is not self.rec and not isinstance(scope, StepScope):
            return self.fallback(scope, spec)
        trial = self.trial()
        found = trial.get(spec.name)
        trial.release()
        return found.like(found.raw.detach())

    def release(self) -> None:
        self._values.clear()
        self._templates.clear()
        del self.rec

    def trial(self) -> TrialScope:
        return TrialScope(self)

    def fallback(self, scope: Scope, spec: LayerSpec) -> NamedTensor:
        """Zeros with only a feature axis (or none), for a layer whose shape depends on itself."""
        if spec.known.name in SAME_SHAPE and len(spec.sources) == 1 and spec.path not in self._falling_back:
            self._falling_back.add(spec.path)
            try:
                like = scope.get(spec.sources[0])
            finally:
                self._falling_back.discard(spec.path)
            return like.dense(torch.zeros_like(like.raw))
        size = self._feature_size(scope, spec, set())
        if size is None:
            raise NetworkError(
                f"{spec.path}: its shape depends on its own frame before; give 'n_out', 'out_type' or 'initial_output'"
            )
        if size == 0:  # one number
            return NamedTensor(torch.zeros((), device=self.rec.run.device), ())
        feature = LayerCall(scope, spec).new_feature(size)
        return NamedTensor(torch.zeros(size, device=self.rec.run.device), (feature,), feature=feature)

    def _feature_size(self, scope: Scope, spec: LayerSpec, seen: set[str]) -> int | None:
        """Number of features as far as the options and the other sources tell; 0: none."""
        call = LayerCall(scope, spec)
        if spec.known.name != "choice" and call.n_out is not None:
            return call.n_out
        declared = self.rec.owner.options.get("n_out")
        if scope.net is self.rec.net and spec.name == "output" and isinstance(declared, int):
            return declared
        if spec.path in seen:
            return None
        seen.add(spec.path)
        sizes = []
        others = [spec.options.get(option) for option in ("base", "true_from", "false_from")]
        for source in [*spec.sources, *(other for other in others if isinstance(other, str))]:
            name = str(source).removeprefix("prev:")
            if name in scope.net:
                sizes.append(self._feature_size(scope, scope.net.spec(name), seen))
            elif not str(source).startswith("prev:"):
                sizes.append(scope.get(source).dim or 0)
        known = [size for size in sizes if size]
        if not known:
            return 0 if 0 in sizes or not sizes else None
        return sum(known) if spec.known.concat and len(sizes) == len(known) else max(known)


class TrialScope(StepScope):
    """The first frame, computed only for the shapes; what depends on itself is replaced by zeros."""

    def __init__(self, initials: InitialValues) -> None:
        super().__init__(initials.rec, 0, None)
        self.initials = initials

    def layer(self, name: str) -> NamedTensor:
        if name in self.rec.plan.loop:
            spec = self.net.spec(name)
            if name in self._active:
                return self.initials.fallback(self, spec)
            if spec.known.name == "choice" or (_has_unit(spec) and spec.path not in self.initials.in_progress):
                return self.initials.template(self, name)
        return super().layer(name)

    def compute(self, spec: LayerSpec) -> NamedTensor:
        """A sum has the axes of the summands whose own do not depend on it."""
        try:
            return super().compute(spec)
        except NetworkError:
            if spec.known.name != "combine":
                raise
            found = []
            for source in spec.sources:
                with contextlib.suppress(NetworkError):
                    found.append(self.get(source))
            if not found:
                raise
        _, template = broadcast(found, self.all_hidden)
        return template.dense(torch.zeros(template.raw.shape, device=self.run.device))

    def previous_of(self, scope: Scope, name: str) -> NamedTensor:
        if name in scope.net:
            spec = scope.net.spec(name)
            if spec.path in self.initials.in_progress and spec.known.name != "choice":
                return self.initials.fallback(scope, spec)
        return super().previous_of(scope, name)

    def record(self, ended: NamedTensor | None, lengths: NamedTensor | None) -> Frame:
        raise AssertionError("a trial is no frame")


def _chooses_labels(spec: LayerSpec) -> bool:
    return spec.known.name == "choice" and spec.options.get("input_type") != "regression"


def _has_unit(spec: LayerSpec) -> bool:
    """Layers whose output size is known without computing them."""
    return spec.known.name == "rnn_cell" or (
        spec.known.name == "rec" and isinstance(spec.options.get("unit"), str) and "n_out" in spec.options
    )
