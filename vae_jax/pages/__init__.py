"""Pages to look at in a browser: one HTML file each, which needs nothing else."""
