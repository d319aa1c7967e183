"""Is the trained model better than the original? Paired statistics and a verdict."""

from seatrial.compare.comparison import compare_files, write_comparison

__all__ = ["compare_files", "write_comparison"]
