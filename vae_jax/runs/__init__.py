"""A run, in memory or in a folder: trained, resumed, read back."""
