"""A Hydra-driven experiment runner for sequence models on PyTorch."""
