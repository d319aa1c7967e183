"""A Slurm cluster from outside, through Seatrial on its login node."""
