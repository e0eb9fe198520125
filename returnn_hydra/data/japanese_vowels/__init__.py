"""The Japanese Vowels set: train.hdf, dev.hdf, eval.hdf (README.md: contents, citation and licence)."""
