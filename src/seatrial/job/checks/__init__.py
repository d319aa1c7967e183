"""The acceptance test on the nodes: what leads it, what takes part in it, and the programs that measure. Nobody judges here."""
