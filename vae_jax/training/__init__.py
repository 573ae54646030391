"""Training: one step, compiled loops of steps, one run or many side by side, and the driver of both."""
