"""returnn"""

__version__ = "1.0.0+hydra"
__long_version__ = "1.0.0+returnn-hydra"
