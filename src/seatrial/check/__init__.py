"""Does the machine pass? Samples are collected, then judged by pure functions."""
