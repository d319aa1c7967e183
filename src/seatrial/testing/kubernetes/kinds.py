"""The kinds of object that the pretend cluster serves."""

from __future__ import annotations

from seatrial.testing.kubernetes.store import Resource

PODS = Resource("", "v1", "pods", "Pod")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
EVENTS = Resource("", "v1", "events", "Event")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SECRETS = Resource("", "v1", "secrets", "Secret")
SERVICES = Resource("", "v1", "services", "Service")
CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
QUOTAS = Resource("", "v1", "resourcequotas", "ResourceQuota")
LIMIT_RANGES = Resource("", "v1", "limitranges", "LimitRange")
ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
JOBS = Resource("batch", "v1", "jobs", "Job")
PRIORITIES = Resource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False)
STORAGE = Resource("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False)
DAEMON_SETS = Resource("apps", "v1", "daemonsets", "DaemonSet")
CRDS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
REVIEWS = Resource(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)
JOB_SETS = Resource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
TRAIN_JOBS = Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob")
RUNTIMES = Resource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes", "TrainingRuntime")
CLUSTER_RUNTIMES = Resource(
    "trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes", "ClusterTrainingRuntime", namespaced=False
)
PYTORCH_JOBS = Resource("kubeflow.org", "v1", "pytorchjobs", "PyTorchJob")
WORKLOADS = Resource("kueue.x-k8s.io", "v1beta2", "workloads", "Workload")
LOCAL_QUEUES = Resource("kueue.x-k8s.io", "v1beta2", "localqueues", "LocalQueue")
CLUSTER_QUEUES = Resource("kueue.x-k8s.io", "v1beta2", "clusterqueues", "ClusterQueue", namespaced=False)

BUILT_IN = (
    PODS, NODES, NAMESPACES, EVENTS, CONFIG_MAPS, SECRETS, SERVICES, CLAIMS, QUOTAS, LIMIT_RANGES, ACCOUNTS, JOBS, PRIORITIES,
    STORAGE, DAEMON_SETS, CRDS, REVIEWS,
)  # fmt: skip
ADDED = {
    "jobset": (JOB_SETS,),
    "trainer": (JOB_SETS, TRAIN_JOBS, RUNTIMES, CLUSTER_RUNTIMES),
    "training-operator": (PYTORCH_JOBS,),
    "kueue": (WORKLOADS, LOCAL_QUEUES, CLUSTER_QUEUES),
}
"""What a cluster may have beside, by the name of what brings it."""

_POD_FIELDS = ("serviceAccountName", "nodeSelector", "affinity", "tolerations", "schedulingGates", "imagePullSecrets",
               "volumes", "initContainers", "containers")  # fmt: skip
_NEWER = (*_POD_FIELDS, "securityContext", "terminationGracePeriodSeconds")


def trainjob_schema(trainer: str) -> dict[str, object]:
    """The part of a TrainJob's schema that tells how its pods are changed.

    Args:
        trainer: ``2.2`` (runtimePatches), ``2.1`` (podTemplateOverrides), ``2.0`` (podSpecOverrides), or anything else for a
            Trainer that has none of these.
    """

    def fields(*names: str) -> dict[str, object]:
        return {"type": "object", "properties": {name: {} for name in names}}

    def pod(names: tuple[str, ...], container: tuple[str, ...]) -> dict[str, object]:
        of_container = {"type": "array", "items": fields(*container)}
        return {"type": "object", "properties": {**{name: {} for name in names}, "containers": of_container}}

    metadata, inner = fields("labels", "annotations"), dict[str, object]()
    item: dict[str, object] = {}
    if trainer == "2.2":
        inner = {
            "metadata": metadata,
            "spec": pod(_NEWER, ("name", "env", "volumeMounts", "securityContext")),
        }
        schema: dict[str, object] = {"type": "object", "properties": inner}
        for name in reversed(
            ("trainingRuntimeSpec", "template", "spec", "replicatedJobs", "template", "spec", "template")
        ):
            wrapped = {"type": "array", "items": schema} if name == "replicatedJobs" else schema
            schema = {"type": "object", "properties": {name: wrapped}}
        item = {"runtimePatches": {"type": "array", "items": schema}}
    elif trainer == "2.1":
        inner = {
            "targetJobs": {},
            "metadata": metadata,
            "spec": pod(_NEWER, ("name", "env", "volumeMounts", "securityContext")),
        }
        item = {"podTemplateOverrides": {"type": "array", "items": {"type": "object", "properties": inner}}}
    elif trainer == "2.0":
        inner = pod(("targetJobs", *_POD_FIELDS), ("name", "env", "volumeMounts"))
        item = {"podSpecOverrides": {"type": "array", "items": inner}}
    spec = {"type": "object", "properties": {"runtimeRef": {}, "trainer": {}, "suspend": {}, **item}}
    return {"type": "object", "properties": {"spec": spec}}
