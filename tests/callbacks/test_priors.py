"""Priors against the mean of the posteriors, and posteriors that are none."""

import numpy as np
import pytest

from returnn_hydra.callbacks.priors import Priors
from returnn_hydra.usage import UsageError


@pytest.mark.parametrize("log_space", [True, False])
def test_the_log_of_the_mean(tmp_path, log_space):
    rng = np.random.default_rng(1)
    rows = [rng.dirichlet(np.ones(4), size).astype(np.float32) for size in (3, 0, 5)]
    priors = Priors(tmp_path, "eval", log_space=log_space)
    priors.init(None)
    for number, row in enumerate(rows):
        priors.process_seq(f"seq-{number}", {"output": np.log(row) if log_space else row})
    priors.finish()
    found = np.loadtxt(tmp_path / "eval.log_priors.txt")
    np.testing.assert_allclose(found, np.log(np.concatenate(rows).astype(float).mean(0)), rtol=1e-6)


@pytest.mark.parametrize("log_space", [True, False])
def test_probabilities_for_logarithms_and_the_reverse_are_an_error(tmp_path, log_space):
    posteriors = np.float32([[0.25, 0.75], [0.5, 0.5]])
    priors = Priors(tmp_path, "eval", log_space=log_space)
    priors.init(None)
    with pytest.raises(
        UsageError, match=r"seq-0: output 'output': the posteriors of frame 0 sum to -?\d.*, expected 1"
    ):
        priors.process_seq("seq-0", {"output": posteriors if log_space else np.log(posteriors)})
