"""Images from a trained model: samplers, guidance, and a generator for each image."""
