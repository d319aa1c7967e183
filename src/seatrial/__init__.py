"""Seatrial: from a fresh GPU cluster to a shipped model, with proof at every step."""

__version__ = "0.1.0"
