"""What learns: recipes, data, encoders, fusion and the training loop (torch)."""
