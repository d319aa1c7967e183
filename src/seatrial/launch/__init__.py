"""Spec to plan to request to submission, and following what was submitted."""
