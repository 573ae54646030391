"""Weights to and from other frameworks, and the PyTorch twin of our networks."""
