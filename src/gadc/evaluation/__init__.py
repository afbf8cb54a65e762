"""How good a subset, or a set of generated images, is; knows nothing of how it was made.

All measures are functions of feature vectors. `generated` is what is judged (samples of a model, or
a subset), `real` what it is judged by; both are keywords, so that they can't be confused. Whoever
asks several measures of the same vectors wraps them in a `Sample` once. `evaluate` puts them
together: from images on disk to every number with its protocol.
"""
