"""RETURNN configurations on this project's engine: from the config's values to a trainer, a forward run, an evaluation.

The way of a command (`returnn_command.py`): read the files and check the keys (`session`), find the task
(`task_table`), build data (`datasets`, `streams`), model and steps (`recipe`, `user_functions`, `network_dict`), the
parameters to start from (`start`), and run.
"""
