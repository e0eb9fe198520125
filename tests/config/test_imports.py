import gc

import pytest

from returnn_hydra.config.imports import without_collections


def test_nothing_is_collected_inside_and_everything_later_is():
    runs = []
    gc.callbacks.append(lambda phase, info: runs.append(phase))
    try:
        with without_collections():
            inside = [[] for _ in range(100_000)]
        assert runs == []
        assert gc.isenabled()
    finally:
        gc.callbacks.pop()
        gc.unfreeze()
    assert len(inside) == 100_000


def test_collects_again_after_an_error():
    with pytest.raises(KeyError), without_collections():
        raise KeyError
    assert gc.isenabled()
    gc.unfreeze()
