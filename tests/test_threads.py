"""Waiting threads sleep, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_wait_policy(given, used):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    words = [sys.executable, "-c", "import returnn_hydra, os; print(os.environ['OMP_WAIT_POLICY'])"]
    assert subprocess.check_output(words, env=environment, text=True).strip() == used
