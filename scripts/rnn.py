"""RETURNN's command line: `python scripts/rnn.py my.config ++num_epochs 5`."""

from returnn_hydra.tasks.returnn_command import main

if __name__ == "__main__":
    main()
