"""Floor 6: one runnable file per result."""
