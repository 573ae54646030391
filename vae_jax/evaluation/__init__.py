"""Evaluates trained models: figures of a split, likelihoods, diagnostics, samplers, the use of codes."""
