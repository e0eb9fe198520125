"""Recurrent layers: units, and loops over networks."""
