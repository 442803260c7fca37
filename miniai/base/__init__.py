"""Floor 1: devices, seeds, configs, weights and image files, plots."""
