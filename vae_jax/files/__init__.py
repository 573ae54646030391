"""Files and folders, written whole, locked, and read with bounds."""
