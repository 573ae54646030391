"""Pure array functions that parts and networks are made of."""
