"""A Hydra-driven experiment runner for sequence models on PyTorch."""

import os

# Threads that wait for each other sleep, as soon as torch is imported after this. By default they spin, which on a
# machine with other work makes small models ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
