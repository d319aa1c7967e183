"""Slurm: what its clients print, read into plain data, and what that means for a run."""
