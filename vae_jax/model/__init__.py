"""Models: parts put together into pure functions, checks that they go together, and a model in use."""
