"""A network inside of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.registry import register_layer


@register_layer("subnetwork")
def subnetwork(
    call: LayerCall,
    *,
    subnetwork: Mapping[str, Any],
    concat_sources: bool = True,
    load_on_init: Any = None,
    rec_previous_layer: Any = None,
    _output: str = "output",
    _parent_layer_cache: Any = None,
) -> NamedTensor:
    """The inner network sees the input as `data`, this network as `base:`; its `output` is the result."""
    del rec_previous_layer, _parent_layer_cache
    if load_on_init:
        call.scope.store.files[f"{call.param_path}/"] = load_on_init
    return run_subnetwork(call, subnetwork, _data(call, concat_sources), output=_output)


def _data(call: LayerCall, concat_sources: bool) -> dict[str, NamedTensor]:
    if not call.spec.sources:
        return {}
    if concat_sources:
        return {"data": call.x}
    return {"data" if i == 0 else f"data:{i}": source for i, source in enumerate(call.sources)} | {
        str(i): source for i, source in enumerate(call.sources)
    }


def run_subnetwork(
    call: LayerCall,
    layers: Mapping[str, Any],
    data: dict[str, NamedTensor],
    prefix: str | None = None,
    output: str = "output",
) -> NamedTensor:
    """Compute the inner network; its layers with a loss report it."""
    net = call.spec.sub(layers)
    if output not in net:
        raise call.error(f"the network inside has no layer {output!r}")
    reuse = call.options.get("reuse_params")
    reuse_prefix = f"{call.scope.param_path_of(reuse, call.path)}/" if isinstance(reuse, str) else None
    scope = call.scope.child(
        call.name,
        net,
        f"{call.param_path}/" if prefix is None else prefix,
        data=data,
        trainable=call.scope.trainable and call.options.get("trainable", True) is not False,
        reuse_prefix=reuse_prefix,
    )
    result = scope.get(output)
    if not call.stepping:
        for name in net.roots(call.run.search, call.run.with_losses):
            scope.get(name)
    return result
