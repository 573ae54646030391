"""Sweeps: the same model with many seeds and settings, as one program and a folder for every run."""
