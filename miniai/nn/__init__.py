"""Floor 2: layers and networks as modules, with the names that Diffusers and transformers give their weights; and
clustering by mean shift."""
