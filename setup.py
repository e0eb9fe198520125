"""Packages of the wheel: those of returnn_hydra/, and conf/ as returnn_hydra/conf (pyproject.toml can't say both)."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["returnn_hydra*"]), "returnn_hydra.conf"],
    package_dir={"returnn_hydra.conf": "conf"},
    package_data={"returnn_hydra.conf": ["**/*.yaml"], "returnn_hydra.data.japanese_vowels": ["*.hdf", "*.md"]},
)
