"""What comes in: downloads, clips, the prompt suite, the caches of latents and embeddings."""
