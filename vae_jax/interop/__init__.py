"""Weights to and from other frameworks, and their twins of our networks."""
