"""gadc: choose the few real images a diffusion model needs."""

__version__ = "0.1.0"
