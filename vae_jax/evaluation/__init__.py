"""What a trained model is worth: figures of a split, likelihoods, diagnostics, samplers, the use of codes."""
