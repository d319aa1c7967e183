"""What runs on nodes: the only package that imports torch. Started as `python -m seatrial.job.agent`."""
