"""Floor 0: machine learning from nothing, on the standard library alone. Read the files in this order.

Numbers: from lists to tensors.

1. lists.py: a buffer cut into rows; matrices as lists of lists
2. matrix.py: a matrix through Python's data model
3. shapes.py: shapes, strides and broadcasting
4. ieee.py: functions of numbers that answer inf and nan
5. kernels.py: the loop where the time goes: a product of matrices
6. strided.py: a buffer read through shape and strides
7. tensor.py: the tensor
8. creation.py: tensors made and joined
9. einsum.py: Einstein summation, parsed here
10. matmul.py: one product of matrices in stages, and shared among processes
11. rearrange.py: dimensions moved, joined, reduced and repeated by name
12. apl.py: APL's primitives beside PyTorch's
13. norms.py: lengths, and the stable logarithm of a sum of exponentials
14. statistics.py: mean, variance, covariance, correlation, histogram

Learning: chance, derivatives, layers, data, until a network tells images apart.

15. rng.py: random numbers from explicit state, a stream for each worker
16. dual.py: derivatives by infinitesimals, and by finite differences
17. layers.py: layers with the backward pass written by hand
18. autograd.py: reverse-mode differentiation
19. functional.py: activations with their slopes, softmax
20. losses.py: MSE, cross entropy, the contrastive loss
21. modules.py: modules, parameters, hooks, Linear, Sequential
22. convolution.py: convolution by im2col, pooling, the receptive field
23. normalisation.py: batch, layer, instance and group norm
24. attention.py: dropout, embeddings, attention
25. optim.py: SGD, RMSprop, Adam, AdamW
26. schedules.py: the learning rate over time
27. data.py: IDX files, samplers, collation, loading by processes
28. meanshift.py: clusters, without being told how many
29. models.py: a linear classifier, an MLP, a small CNN
30. train.py: the training loop

Painting: the packaged model, from its files to a picture.

31. safetensors.py: weights read from their file
32. png.py: pictures written to theirs
33. folder.py: a model's folder, its settings and weights
34. tokenizer.py: text becomes numbers: byte-pair encoding
35. layer_kernels.py: the loops of a trained network, whose weights stay
36. inference.py: layers that only look forward
37. clip.py: the text encoder
38. blocks.py: timestep, attention, residual block, half and double size
39. transformer.py: a picture's positions look at one another and at the text
40. unet.py: the network that tells noise from picture
41. autoencoder.py: latents become pictures
42. ladder.py: noise levels, and those that sampling visits
43. sampler.py: denoiser, guidance, DPM++ 2M
44. mersenne.py: PyTorch's random numbers from a seed
45. branches.py: two processes for the two answers that guidance needs
46. pipeline.py: Stable Diffusion, whole
47. generate.py: a prompt becomes a PNG file
48. __main__.py: the command line
"""
