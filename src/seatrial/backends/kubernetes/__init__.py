"""Kubernetes: a job a run, by whatever kind of job the cluster has."""
