"""Bare machines that one has ssh to: made ready for runs, verified, and put back."""
