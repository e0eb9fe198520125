"""returnn.util.literal_py_to_pickle"""

from ast import literal_eval

__all__ = ["literal_eval"]
