"""Sweeps: one model with many seeds and settings, compiled as one program, with a folder for every run."""
