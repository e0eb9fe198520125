"""Decoders: labels, step by step or all at once."""
