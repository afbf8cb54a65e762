"""Training of diffusion and flow transformers on a subset, or on any folder of images.

`DiffusionTransformer` with a `Process` (`GaussianDiffusion` or `LinearInterpolant`) is the model;
`train` runs the loop over what `draw_batch` says each step consists of.
"""
