"""Floor 2: the training framework, to be read in this order.

- `data`, `transforms`, `dataloaders`, `idx`, `fashion_mnist`, `captions`: batches that follow from (seed, epoch, index)
- `learner`, `callback`, `train_learner`: the loop, what acts on it from outside, and two styles of changing it
- `callbacks`, `loss_scaling`, `ema`, `schedule`, `schedulers`, `metrics`, `guards`, `checkpoint`: what a training needs
- `progress`, `live_plot`, `tracking`: what a person sees of it
- `augment`, `trivial_augment`, `inference`: more from the same pictures, while training and when asking
- `hooks`, `activations`, `summary`, `lr_find`, `predictions`: looking into a model, and what to try next
- `distributed`: several processes
- `habits`: Python's own tools for all of it

Every class shows itself in an example in its docstring, and the tests run them all.
"""
