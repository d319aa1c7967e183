"""Is the trained model better than the original? Paired statistics and a verdict."""
