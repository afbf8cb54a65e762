"""Selection from one class, its record on disk, and many classes at once."""
