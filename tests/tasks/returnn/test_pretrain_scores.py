"""A pretraining against RETURNN's TensorFlow backend (1.20261022 with TensorFlow 2.15.1, scores of this very config).

The first values of all parameters are given in the config: what is left are the numbers that RETURNN computes.
"""

import pytest

RETURNN = {
    1: {"train_score": 0.6602711693369875, "dev_score": 0.571766858263047, "train_error": 0.33756345217288336},
    2: {"train_score": 0.5188157278490264, "dev_score": 0.4374066090816719, "train_error": 0.14054451847594746},
    3: {"train_score": 0.5134432078931518, "dev_score": 0.4085434257006938, "train_error": 0.13075658090355446},
    4: {"train_score": 0.38811079526617676, "dev_score": 0.4168398408441551, "train_error": 0.12463342915650616},
    5: {"train_score": 0.4470933526143501, "dev_score": 0.4360541954720831, "train_error": 0.1424124524763887},
    6: {"train_score": 0.4094473889111769, "dev_score": 0.405008924795024, "train_error": 0.13471849787510023},
    7: {"train_score": 0.3648987077054446, "dev_score": 0.4030770965800509, "train_error": 0.11394557927997286},
    8: {"train_score": 0.40594056776233783, "dev_score": 0.4028505414765525, "train_error": 0.14053254480096408},
}


def test_scores_of_all_stages(run, scores):
    """The net grows in epochs 3 and 5, in depth and in width; the optimizer begins anew at both changes."""
    run("growing_lstm.config")
    for epoch, expected in RETURNN.items():
        found = scores()[epoch][1]
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-5), epoch
