"""A Kubernetes on this machine: the REST API over HTTP, its controllers, and pods that are processes."""
