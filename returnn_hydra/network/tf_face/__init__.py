"""A small TensorFlow face over torch, for functions and expressions in configs.

It covers what published configs call; another name is an error that says so.
"""

from returnn_hydra.network.tf_face.modules import tensorflow_modules
from returnn_hydra.network.tf_face.namespace import tf_namespace

__all__ = ["tensorflow_modules", "tf_namespace"]
