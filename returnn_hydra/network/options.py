"""Options that every layer of a network dict may have, and the check that no option is overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn_hydra.network.errors import NetworkError, nearest
from returnn_hydra.network.registry import LayerClass

HANDLED = frozenset(
    "class from n_out out_dim out_type target loss loss_scale loss_opts size_target L2 reuse_params name_scope "
    "trainable initial_output is_output_layer only_on_search only_on_eval register_as_extern_data need_last "
    "param_variational_noise param_dropout param_dropout_min_ndim batch_norm out_shape encapsulate".split()
)
"""Options that the network treats itself."""
DROPOUT = frozenset("dropout dropout_axis dropout_noise_shape dropout_on_forward".split())
"""On the concatenated input."""
WITHOUT_EFFECT = frozenset(
    "param_device collocate_with control_dependencies_on_output debug_print_layer_output back_prop name _name "
    "custom_param_importer unroll".split()
)
"""Options that say where or how TensorFlow computes, or how a checkpoint is read; they change no value."""


def check_options(options: Mapping[str, Any], known: LayerClass, where: str) -> None:
    """Refuse options that nothing reads.

    Raises:
        NetworkError: naming the layer, the option and the nearest supported one.
    """
    general = HANDLED | WITHOUT_EFFECT | (DROPOUT if known.concat else frozenset())
    for option in options:
        if option in general or option in known.options or option.startswith("#"):
            continue
        raise NetworkError(
            f"{where}: class {known.name!r} has no option {option!r} = {options[option]!r}"
            f"{nearest(option, known.options | HANDLED | (DROPOUT if known.concat else frozenset()))}"
        )


def layer_options(options: Mapping[str, Any], known: LayerClass) -> dict[str, Any]:
    """The options for the layer's own function."""
    return {key: value for key, value in options.items() if key in known.options}
