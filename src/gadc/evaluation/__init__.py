"""How good a subset, or a set of generated images, is; knows nothing of how it was made."""
