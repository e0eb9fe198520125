"""returnn.forward_iface"""

from returnn_hydra.frontend.forward_callback import ForwardCallbackIface

__all__ = ["ForwardCallbackIface"]
