"""RETURNN's modules by their names, made of this project's parts. Used only through `compat/import_hook.py`."""
