"""What is deleted in a pretend cluster, and what goes with it: propagation, grace, owners."""

from __future__ import annotations

from seatrial.testing.kubernetes import kinds
from seatrial.testing.kubernetes.store import Object, Resource, Store, stamp


class Garbage:
    """Deletes objects as an API server and its garbage collector do.

    Args:
        store: the objects.
        resources: what is served.
    """

    def __init__(self, store: Store, resources: tuple[Resource, ...]) -> None:
        self._store, self._resources = store, resources

    def delete(
        self, resource: Resource, namespace: str, name: str, propagation: str | None, grace_s: int | None
    ) -> Object:
        """As the API does it; what it answers."""
        with self._store.changed:
            body = self._store.get(resource, namespace, name)
            if resource == kinds.PODS:
                self.delete_pod(body, grace_s)
                return body
            owns = resource in {kinds.JOBS, kinds.JOB_SETS, kinds.TRAIN_JOBS, kinds.PYTORCH_JOBS}
            # Without a policy, the API leaves the pods of a batch/v1 Job where they are.
            policy = propagation or ("Orphan" if resource == kinds.JOBS else "Background")
            mark = {"Orphan": "orphan", "Foreground": "foregroundDeletion"}.get(policy)
            deleted = {"deletionTimestamp": stamp(), "deletionGracePeriodSeconds": 0}
            if owns and mark is not None:

                def change(item: Object) -> None:
                    item["metadata"] |= {
                        **deleted,
                        "finalizers": [*(item["metadata"].get("finalizers") or []), mark],
                    }

                return self._store.update(resource, body, change)
            self._store.remove(resource, body)
            self._orphaned(body, keep=policy == "Orphan")
            return {
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": name, "kind": resource.plural, "uid": body["metadata"]["uid"]},
            }  # fmt: skip

    def delete_pod(self, pod: Object, grace_s: int | None = None) -> None:
        """Asks a pod to end; one that never began is gone at once."""
        metadata = pod["metadata"]
        kept = self._store.find(kinds.PODS, metadata["namespace"], metadata["name"])
        if kept is None:
            return
        phase = kept["status"]["phase"]
        over = phase in {"Succeeded", "Failed"} and not metadata.get("ownerReferences")
        if over or not kept["spec"].get("nodeName"):
            self._store.remove(kinds.PODS, kept)
            return
        grace = kept["spec"].get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s

        def change(item: Object) -> None:
            item["metadata"] |= {
                "deletionTimestamp": item["metadata"].get("deletionTimestamp") or stamp(),
                "deletionGracePeriodSeconds": grace,
            }

        self._store.update(kinds.PODS, kept, change)

    def _orphaned(self, owner: Object, *, keep: bool) -> bool:
        """Deletes what an object owned, or leaves it on its own; whether some of it is still there."""
        uid, left = owner["metadata"]["uid"], False
        for resource in self._resources:
            for body in self._store.every(resource):
                owners = body["metadata"].get("ownerReferences") or []
                if not any(reference["uid"] == uid for reference in owners):
                    continue
                others = [reference for reference in owners if reference["uid"] != uid]
                if keep or others:
                    self._store.update(
                        resource,
                        body,
                        lambda item, rest=others: item["metadata"].update(ownerReferences=rest),
                    )
                    continue
                left = True
                if resource == kinds.PODS:
                    if not body["metadata"].get("deletionTimestamp"):
                        self.delete_pod(body)
                    elif body["status"]["phase"] in {"Succeeded", "Failed"}:
                        self._store.remove(resource, body)
                elif resource == kinds.JOBS and not body["metadata"].get("deletionTimestamp"):
                    self.delete(
                        resource, body["metadata"]["namespace"], body["metadata"]["name"], "Foreground", None
                    )
                elif resource != kinds.JOBS:
                    self._store.remove(resource, body)
        return left

    def collect(self) -> None:
        """Garbage: owners that wait for what they own, and pods without an owner that have ended on their way out."""
        for resource in (kinds.TRAIN_JOBS, kinds.JOB_SETS, kinds.PYTORCH_JOBS, kinds.JOBS):
            for body in self._store.every(resource) if resource in self._resources else []:
                if not body["metadata"].get("deletionTimestamp"):
                    continue
                keep = "orphan" in (body["metadata"].get("finalizers") or [])
                if not self._orphaned(body, keep=keep) or keep:
                    self._store.remove(resource, body)
        uids = {
            body["metadata"]["uid"] for resource in self._resources for body in self._store.every(resource)
        }
        for pod in self._store.every(kinds.PODS):
            metadata = pod["metadata"]
            owned = any(reference["uid"] in uids for reference in metadata.get("ownerReferences") or [])
            if (
                metadata.get("deletionTimestamp")
                and pod["status"]["phase"] in {"Succeeded", "Failed"}
                and not owned
            ):
                self._store.remove(kinds.PODS, pod)
