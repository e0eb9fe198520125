"""returnn.util.pprint"""

from pprint import pformat, pprint

__all__ = ["pformat", "pprint"]
