"""Floor 0: machine learning from nothing, on the standard library alone. Read the files in this order.

1. lists.py: a buffer cut into rows; matrices as lists of lists
2. matrix.py: a matrix through Python's data model
3. shapes.py: shapes, strides and broadcasting
4. kernels.py: the loops where the time goes
5. ieee.py: functions of numbers that answer inf and nan
6. strided.py: a buffer read through shape and strides
7. tensor.py: the tensor
8. creation.py: tensors made and joined
9. einsum.py: Einstein summation, parsed here
10. matmul.py: one product of matrices in stages, and shared among processes
11. rearrange.py: dimensions moved, joined, reduced and repeated by name
12. apl.py: APL's primitives beside PyTorch's
13. norms.py: lengths, and the stable logarithm of a sum of exponentials
14. statistics.py: mean, variance, covariance, correlation, histogram
15. rng.py: random numbers from explicit state, a stream for each worker
16. dual.py: derivatives by infinitesimals, and by finite differences
"""
