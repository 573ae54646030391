"""The machine: its platform, devices, processes and memory, and how images reach it."""
