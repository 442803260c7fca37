"""Floor 0: machine learning from nothing, on the standard library alone. Read the files in this order.

1. lists.py: a buffer cut into rows; matrices as lists of lists
2. matrix.py: a matrix through Python's data model
3. shapes.py: shapes, strides and broadcasting
4. kernels.py: the loops where the time goes
5. ieee.py: functions of numbers that answer inf and nan
6. strided.py: a buffer read through shape and strides
7. tensor.py: the tensor
8. creation.py: tensors made and joined
"""
