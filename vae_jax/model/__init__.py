"""A model: parts put together into pure functions, refused where they make no sense together, and in use."""
