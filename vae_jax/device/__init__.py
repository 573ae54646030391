"""The machine: what suits its platform, its devices, processes and memory, and images brought to it."""
