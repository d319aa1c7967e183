"""Tests on a real Slurm that they start on this machine."""
