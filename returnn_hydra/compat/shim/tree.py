"""tree (the package dm-tree), where it is not installed: RETURNN brings it along, and configs map over states with it.

A structure is a list, tuple, named tuple or mapping of structures; everything else is a leaf. Mappings are walked in
the order of their sorted keys, as dm-tree does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

__all__ = [
    "assert_same_structure",
    "flatten",
    "flatten_with_path",
    "is_nested",
    "map_structure",
    "map_structure_up_to",
    "map_structure_with_path",
    "unflatten_as",
]
Path = tuple[Any, ...]


def is_nested(structure: Any) -> bool:
    """Whether it is a structure, and no leaf."""
    return isinstance(structure, list | tuple | Mapping)


def _items(structure: Any) -> list[tuple[Any, Any]]:
    if isinstance(structure, Mapping):
        return [(key, structure[key]) for key in _sorted(structure)]
    return list(enumerate(structure))


def _sorted(keys: Iterable[Any]) -> list[Any]:
    keys = list(keys)
    try:
        return sorted(keys)
    except TypeError:  # keys of several types
        return keys


def _like(structure: Any, parts: Iterable[Any]) -> Any:
    """The parts, in the order of `_items`, put together as the structure is."""
    if isinstance(structure, Mapping):
        by_key = dict(zip(_sorted(structure), parts, strict=True))
        return type(structure)((key, by_key[key]) for key in structure)  # type: ignore[call-arg]
    if hasattr(structure, "_fields"):
        return type(structure)(*parts)
    return type(structure)(parts)


def flatten_with_path(structure: Any) -> list[tuple[Path, Any]]:
    """(path of keys and indices, leaf) of all leaves."""
    return list(_leaves(structure, ()))


def _leaves(structure: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if not is_nested(structure):
        yield path, structure
        return
    for key, part in _items(structure):
        yield from _leaves(part, (*path, key))


def flatten(structure: Any) -> list[Any]:
    """All leaves."""
    return [leaf for _, leaf in flatten_with_path(structure)]


def unflatten_as(structure: Any, flat_sequence: Iterable[Any]) -> Any:
    """These leaves in the form of the structure.

    Raises:
        ValueError: it has another number of leaves.
    """
    leaves = list(flat_sequence)
    if len(leaves) != len(flatten(structure)):
        raise ValueError(f"unflatten_as: {len(leaves)} values for a structure of {len(flatten(structure))} leaves")
    rest = iter(leaves)
    return map_structure(lambda _: next(rest), structure)


def assert_same_structure(a: Any, b: Any, check_types: bool = True) -> None:
    """
    Raises:
        ValueError: another number of parts, other keys, or a leaf where the other has a structure.
        TypeError: other types, with check_types.
    """
    if is_nested(a) != is_nested(b):
        raise ValueError(f"the structures differ: {a!r} and {b!r}")
    if not is_nested(a):
        return
    if check_types and type(a) is not type(b) and not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        raise TypeError(f"the structures differ: a {type(a).__name__} and a {type(b).__name__}")
    left, right = _items(a), _items(b)
    if [key for key, _ in left] != [key for key, _ in right]:
        raise ValueError(f"the structures differ: {[k for k, _ in left]} and {[k for k, _ in right]}")
    for (_, one), (_, other) in zip(left, right, strict=True):
        assert_same_structure(one, other, check_types)


def map_structure(func: Callable[..., Any], *structures: Any, check_types: bool = True) -> Any:
    """The function of the leaves at the same places, in the form of the first structure."""
    for other in structures[1:]:
        assert_same_structure(structures[0], other, check_types)
    return map_structure_up_to(structures[0], func, *structures)


def map_structure_with_path(func: Callable[..., Any], *structures: Any, check_types: bool = True) -> Any:
    """As map_structure; the function gets the path first."""
    for other in structures[1:]:
        assert_same_structure(structures[0], other, check_types)
    return _mapped(structures[0], func, structures, ())


def map_structure_up_to(shallow_structure: Any, func: Callable[..., Any], *structures: Any, **_options: Any) -> Any:
    """As map_structure, down to the leaves of `shallow_structure`."""
    return _mapped(shallow_structure, lambda _path, *leaves: func(*leaves), structures, ())


def _mapped(shape: Any, func: Callable[..., Any], structures: tuple[Any, ...], path: Path) -> Any:
    if not is_nested(shape):
        return func(path, *structures)
    parts = [
        _mapped(part, func, tuple(structure[key] for structure in structures), (*path, key))
        for key, part in _items(shape)
    ]
    return _like(shape, parts)
