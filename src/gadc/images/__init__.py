"""Real images: where they are (`index`) and how their bytes become pixels (`decode`)."""
