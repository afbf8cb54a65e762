"""Methods x budgets x seeds, from the selection to the score of generated images, in one table."""
