"""Features and class probabilities: encoders, extraction, the store, and the linear probe."""
