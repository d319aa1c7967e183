"""A Slurm cluster on Nebius: described, checked, made by the Soperator recipe, and removed."""
