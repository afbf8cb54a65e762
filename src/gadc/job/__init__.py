"""What a selection is made of: classes or clusters, copies, budget, confidence; and its result."""
