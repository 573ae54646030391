"""Reads traced programs, and packs the state that a compiled loop carries."""
