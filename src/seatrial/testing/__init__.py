"""Fakes for tests of what is built on Seatrial, and for Seatrial's own."""

from seatrial.testing.gpus import FakeGpus, Gpu
from seatrial.testing.kubernetes.cluster import FakeKubernetes
from seatrial.testing.runner import FakeRunner
from seatrial.testing.slurm.cluster import FakeSlurm
from seatrial.testing.slurm.model import Partition, Qos

__all__ = ["FakeGpus", "FakeKubernetes", "FakeRunner", "FakeSlurm", "Gpu", "Partition", "Qos"]
