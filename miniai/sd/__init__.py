"""Floor 4: Stable Diffusion: tokenizer, checkpoint folders, pipeline."""
