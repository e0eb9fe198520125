"""The config's `extern_data` and `model_outputs`: as the frontend's templates, and as what the loaders read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn_hydra.batch import TensorSpec
from returnn_hydra.build import Builder
from returnn_hydra.compat.shim.vocabulary import create_vocab
from returnn_hydra.compat.stream_specs import spec_of_template
from returnn_hydra.compat.training_options import extern_data_node
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.frontend.ambient import ambient_state
from returnn_hydra.frontend.extern_data import SEQ_TAG, make_templates
from returnn_hydra.frontend.tensor_dict import TensorDict
from returnn_hydra.tasks.data import build_specs


def templates(values: Mapping[str, Any], key: str = "extern_data") -> TensorDict | None:
    """The frontend's templates; None: the config has none.

    Raises:
        ConfigError: an entry is wrong.
    """
    entries = values.get(key)
    if entries is None:
        if key != "extern_data" or (values.get("num_outputs") is None and values.get("num_inputs") is None):
            return None
        entries = {name: dict(node) for name, node in extern_data_node(values).items()}
    try:
        with ambient_state(make_vocab=lambda options: create_vocab(options, f"{key}.vocab")):
            return make_templates(entries, key)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{key}: {error}") from error


def specs_of_templates(made: TensorDict) -> dict[str, TensorSpec]:
    """What a loader must read for these templates; `seq_tag` comes by itself."""
    return {name: spec_of_template(tensor) for name, tensor in made.items() if name != SEQ_TAG}


def network_specs(values: Mapping[str, Any], builder: Builder) -> dict[str, TensorSpec]:
    """The streams of a network dict's config; the target is not needed for inference."""
    nodes = extern_data_node(values)
    names = [name for name in nodes if name != "data"]
    target = values.get("target") or ("classes" if "classes" in nodes else names[0] if len(names) == 1 else None)
    if isinstance(target, str) and target in nodes:
        nodes[target].setdefault("available_for_inference", False)
    return build_specs(builder, nodes, "extern_data")
