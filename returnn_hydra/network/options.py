"""Options that every layer of a network dict may have, and the check that no option is overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn_hydra.network.errors import NetworkError, nearest
from returnn_hydra.network.registry import LayerClass

HANDLED = frozenset(
    "class from n_out out_dim out_type target loss loss_scale loss_opts L2 reuse_params name_scope "
    "trainable custom_param_importer initial_output is_output_layer only_on_search only_on_eval need_last "
    "register_as_extern_data param_variational_noise param_dropout param_dropout_min_ndim batch_norm "
    "size_target loss_only_on_non_search".split()
)
"""Options that the network treats itself."""
DROPOUT = frozenset("dropout dropout_axis dropout_noise_shape dropout_on_forward in_dim".split())
"""On the concatenated input: dropout, and which of its axes has the features."""
WITHOUT_EFFECT = frozenset(
    "param_device collocate_with control_dependencies_on_output debug_print_layer_output name _name unroll "
    "out_shape encapsulate".split()
)
"""Options that say where or how TensorFlow computes, or what RETURNN checks; they change no value.

The list is in docs/returnn.md, too.
"""


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
