"""Encoders: sequences of feature vectors to sequences of feature vectors."""
