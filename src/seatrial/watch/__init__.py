"""Are the GPUs used, and if not, why? What the samplers and the trainer wrote, judged and shown."""
