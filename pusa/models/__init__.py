"""Model folders in diffusers' format, LoRA files, and what can be read off the weights."""
