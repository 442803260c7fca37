"""Floor 0: the standard library alone."""
