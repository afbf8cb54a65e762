"""Every method on the same features with the same budgets, judged by the same numbers."""
