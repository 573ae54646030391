"""The package's version, which runs and tables name."""

__version__ = "0.1.0"
