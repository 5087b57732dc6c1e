"""The papers' experiments: one file each, every number with its seed, draws and standard error."""
