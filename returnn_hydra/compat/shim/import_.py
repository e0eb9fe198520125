"""returnn.import_: downloading code at run time is refused."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["import_"]


def import_(repo: str, path: str, version: str | None = None) -> NoReturn:
    """Not done here.

    Raises:
        ImportError: always, saying what to do instead.
    """
    raise ImportError(
        f"import_({repo!r}, {path!r}, {version!r}): code is not downloaded at run time; clone {repo}"
        f"{f' at {version}' if version else ''}, put it on PYTHONPATH and import it as usual"
    )
