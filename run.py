"""Compose the configuration and run its task: `python run.py task=train model=blstm`."""

from returnn_hydra.cli import main

if __name__ == "__main__":  # Hydra's completion looks for the word @hydra.main in this file
    main()
