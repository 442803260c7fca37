"""Floor 2: the training framework: Learner, callbacks, data, checkpoints."""
