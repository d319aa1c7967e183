"""A pretend Slurm: the clients are programs on PATH, jobs and their steps are real processes of this machine.

`cluster` is the owner's side; `server` is the process that is slurmctld, slurmd and slurmdbd in one; `client` is every
client program. What Slurm does was tried on 22.05; tests/contract/test_slurm.py holds both to the same behaviour.
"""
