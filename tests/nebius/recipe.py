"""A small recipe with the variables, modules and addresses of the real one, for the real Terraform.

What it makes are the resources that cost money or hold data (file systems, a cluster, node groups, a GPU cluster, an address, a
bucket), through a provider of the tests; what the real one does inside Kubernetes is one wait here. The variables are declared
with the real names and types of each series; their values flow into fewer attributes.
"""

from __future__ import annotations

from pathlib import Path

_FILESTORE = """object({
    existing = optional(object({
      id = string
    }))
    spec = optional(object({
      size_gibibytes       = number
      block_size_kibibytes = number
    }))
  })"""
_MACHINE = """resource = object({
      platform = string
      preset   = string
    })
    boot_disk = object({
      type                 = string
      size_gibibytes       = number
      block_size_kibibytes = number
    })"""
_SET = f"object({{\n    size = number\n    {_MACHINE}\n  }})"
_SYSTEM = f"object({{\n    min_size = number\n    max_size = number\n    {_MACHINE}\n  }})"
_WORKERS_1_20 = f"""list(object({{
    size                    = number
    nodes_per_nodegroup     = number
    max_unavailable_percent = number
    {_MACHINE}
    gpu_cluster = optional(object({{
      infiniband_fabric = string
    }}))
  }}))"""
_WORKERS_1_22 = f"""list(object({{
    name = string
    size = number
    {_MACHINE}
    gpu_cluster = optional(object({{
      infiniband_fabric = string
    }}))
    preemptible = optional(object({{}}))
  }}))"""
_SUBMOUNTS = _FILESTORE.replace("object({\n    existing", "list(object({\n    name       = string\n    mount_path = string\n    existing", 1) + ")"  # fmt: skip
_LOCAL = """list(object({
    name            = string
    mount_path      = string
    size_gibibytes  = number
    disk_type       = string
    filesystem_type = string
  }))"""
_IMAGES = """object({
    enabled = bool
    spec = optional(object({
      size_gibibytes  = number
      filesystem_type = string
      disk_type       = string
    }))
  })"""
_NFS = """object({
    enabled        = bool
    size_gibibytes = number
    mount_path     = optional(string, "/home")
    resource = object({
      platform = string
      preset   = string
    })
    public_ip = bool
  })"""

REQUIRED = None
# name: (type, default as HCL, or REQUIRED)
_BOTH: dict[str, tuple[str, str | None]] = {
    "region": ("string", REQUIRED),
    "iam_token": ("string", REQUIRED),
    "iam_project_id": ("string", REQUIRED),
    "iam_tenant_id": ("string", REQUIRED),
    "o11y_iam_tenant_id": ("string", REQUIRED),
    "o11y_profile": ("string", REQUIRED),
    "vpc_subnet_id": ("string", REQUIRED),
    "company_name": ("string", REQUIRED),
    "filestore_controller_spool": (_FILESTORE, REQUIRED),
    "filestore_jail": (_FILESTORE, REQUIRED),
    "filestore_jail_submounts": (_SUBMOUNTS, "[]"),
    "filestore_accounting": (_FILESTORE, "null"),
    "node_local_jail_submounts": (_LOCAL, "[]"),
    "node_local_image_disk": (_IMAGES, "{\n    enabled = false\n  }"),
    "nfs": (_NFS, '{\n    enabled        = false\n    size_gibibytes = 93\n    resource       = { platform = "cpu-d3", preset = "32vcpu-128gb" }\n    public_ip      = false\n  }'),
    "k8s_version": ("string", '"1.30"'),
    "slurm_operator_version": ("string", REQUIRED),
    "slurm_operator_stable": ("bool", "true"),
    "slurm_partition_config_type": ("string", '"default"'),
    "slurm_partition_raw_config": ("list(string)", "[]"),
    "slurm_worker_features": ("list(object({ name = string, hostlist_expr = string, nodeset_name = optional(string) }))", "[]"),
    "slurm_nodeset_system": (_SYSTEM, REQUIRED),
    "slurm_nodeset_controller": (_SET, REQUIRED),
    "slurm_nodeset_login": (_SET, REQUIRED),
    "slurm_nodeset_accounting": (f"object({{\n    {_MACHINE}\n  }})", "null"),
    "slurm_login_ssh_root_public_keys": ("list(string)", REQUIRED),
    "slurm_shared_memory_size_gibibytes": ("number", "64"),
    "telemetry_enabled": ("bool", "true"),
    "public_o11y_enabled": ("bool", "true"),
    "accounting_enabled": ("bool", "false"),
    "backups_enabled": ("string", '"auto"'),
    "backups_password": ("string", REQUIRED),
    "backups_schedule": ("string", REQUIRED),
    "backups_prune_schedule": ("string", REQUIRED),
    "backups_retention": ("map(any)", REQUIRED),
}  # fmt: skip
_ONLY: dict[str, dict[str, tuple[str, str | None]]] = {
    "1.20.1": {
        "o11y_iam_project_id": ("string", REQUIRED),
        "o11y_iam_group_id": ("string", REQUIRED),
        "slurm_nodeset_workers": (_WORKERS_1_20, REQUIRED),
        "nccl_use_infiniband": ("bool", "false"),
    },
    "1.22.3": {
        "production": ("bool", "true"),
        "iam_merge_request_url": ("string", REQUIRED),
        "cleanup_bucket_on_destroy": ("bool", REQUIRED),
        "use_preinstalled_gpu_drivers": ("bool", "false"),
        "slurm_nodesets_enabled": ("bool", "false"),
        "slurm_nodesets_partitions": ("list(object({ name = string, is_all = optional(bool, false), nodeset_refs = optional(list(string), []), config = string }))", "[]"),
        "allow_empty_jail_submounts": ("bool", "false"),
        "slurm_nodeset_workers": (_WORKERS_1_22, REQUIRED),
    },
}  # fmt: skip
VERSIONS = tuple(_ONLY)

_TERRAFORM = """terraform {
  required_version = ">=1.8.0"
  required_providers {
    nebius = {
      source  = "terraform-provider.storage.eu-north1.nebius.cloud/nebius/nebius"
      version = ">=0.4"
    }
  }
}

provider "nebius" {
  domain = "api.eu.nebius.cloud:443"
}
"""

_MAIN = """locals {
  sets = {
    system     = { size = var.slurm_nodeset_system.min_size, body = var.slurm_nodeset_system }
    controller = { size = var.slurm_nodeset_controller.size, body = var.slurm_nodeset_controller }
    login      = { size = var.slurm_nodeset_login.size, body = var.slurm_nodeset_login }
  }
}

module "filestore" {
  source         = "../../modules/filestore"
  iam_project_id = var.iam_project_id
  company_name   = var.company_name
  spool          = var.filestore_controller_spool
  jail           = var.filestore_jail
  accounting     = var.accounting_enabled ? var.filestore_accounting : null
  submounts      = var.filestore_jail_submounts
}

module "k8s" {
  source         = "../../modules/k8s"
  iam_project_id = var.iam_project_id
  vpc_subnet_id  = var.vpc_subnet_id
  company_name   = var.company_name
  k8s_version    = var.k8s_version
  sets           = local.sets
  accounting     = var.accounting_enabled ? var.slurm_nodeset_accounting : null
  workers        = var.slurm_nodeset_workers
  depends_on     = [module.filestore]
}

module "slurm" {
  source          = "../../modules/slurm"
  cluster         = module.k8s.cluster_id
  image_disk_spec = var.node_local_image_disk.spec.size_gibibytes
  depends_on      = [module.k8s, module.gpu-operator, module.network-operator]
}

module "gpu-operator" {
  source = "../../../modules/gpu-operator"
}

module "network-operator" {
  source = "../../../modules/network-operator"
}

module "nfs-server" {
  count  = var.nfs.enabled ? 1 : 0
  source = "../../../modules/nfs-server"
}

resource "terraform_data" "kubectl_cluster_context" {
  triggers_replace = [timestamp()]
  input            = module.k8s.cluster_id
}
"""

_FILESTORE_MODULE = """terraform {
  required_providers {
    nebius = {
      source = "terraform-provider.storage.eu-north1.nebius.cloud/nebius/nebius"
    }
  }
}

variable "iam_project_id" { type = string }
variable "company_name" { type = string }
variable "spool" { type = any }
variable "jail" { type = any }
variable "accounting" { type = any }
variable "submounts" { type = any }

resource "nebius_compute_v1_filesystem" "controller_spool" {
  count      = var.spool.spec == null ? 0 : 1
  parent_id  = var.iam_project_id
  name       = "${var.company_name}-controller-spool"
  size_bytes = var.spool.spec.size_gibibytes * 1024 * 1024 * 1024
}

resource "nebius_compute_v1_filesystem" "jail" {
  count      = var.jail.spec == null ? 0 : 1
  parent_id  = var.iam_project_id
  name       = "${var.company_name}-jail"
  size_bytes = var.jail.spec.size_gibibytes * 1024 * 1024 * 1024
}

resource "nebius_compute_v1_filesystem" "accounting" {
  count      = try(var.accounting.spec, null) == null ? 0 : 1
  parent_id  = var.iam_project_id
  name       = "${var.company_name}-accounting"
  size_bytes = var.accounting.spec.size_gibibytes * 1024 * 1024 * 1024
}

resource "nebius_compute_v1_filesystem" "jail_submount" {
  for_each   = { for s in var.submounts : s.name => s if s.spec != null }
  parent_id  = var.iam_project_id
  name       = "${var.company_name}-jail-submount-${each.key}"
  size_bytes = each.value.spec.size_gibibytes * 1024 * 1024 * 1024
}
"""

_K8S_MODULE = """terraform {
  required_providers {
    nebius = {
      source = "terraform-provider.storage.eu-north1.nebius.cloud/nebius/nebius"
    }
  }
}

variable "iam_project_id" { type = string }
variable "vpc_subnet_id" { type = string }
variable "company_name" { type = string }
variable "k8s_version" { type = string }
variable "sets" { type = any }
variable "accounting" { type = any }
variable "workers" { type = any }

resource "nebius_mk8s_v1_cluster" "this" {
  parent_id = var.iam_project_id
  name      = "soperator-${var.company_name}"
  subnet_id = var.vpc_subnet_id
}

resource "nebius_compute_v1_gpu_cluster" "this" {
  for_each          = { for i, w in var.workers : tostring(i) => w if w.gpu_cluster != null }
  parent_id         = var.iam_project_id
  name              = "${var.company_name}-${each.key}"
  infiniband_fabric = each.value.gpu_cluster.infiniband_fabric
}

resource "nebius_vpc_v1_allocation" "this" {
  parent_id = var.iam_project_id
  name      = "${var.company_name}-login"
}

resource "nebius_mk8s_v1_node_group" "system" {
  parent_id        = nebius_mk8s_v1_cluster.this.id
  name             = "system"
  fixed_node_count = var.sets.system.size
  platform         = var.sets.system.body.resource.platform
  preset           = var.sets.system.body.resource.preset
}

resource "nebius_mk8s_v1_node_group" "controller" {
  parent_id        = nebius_mk8s_v1_cluster.this.id
  name             = "controller"
  fixed_node_count = var.sets.controller.size
  platform         = var.sets.controller.body.resource.platform
  preset           = var.sets.controller.body.resource.preset
}

resource "nebius_mk8s_v1_node_group" "login" {
  parent_id        = nebius_mk8s_v1_cluster.this.id
  name             = "login"
  fixed_node_count = var.sets.login.size
  platform         = var.sets.login.body.resource.platform
  preset           = var.sets.login.body.resource.preset
}

resource "nebius_mk8s_v1_node_group" "accounting" {
  count            = var.accounting == null ? 0 : 1
  parent_id        = nebius_mk8s_v1_cluster.this.id
  name             = "accounting"
  fixed_node_count = 1
  platform         = var.accounting.resource.platform
  preset           = var.accounting.resource.preset
}

resource "nebius_mk8s_v1_node_group" "worker" {
  count            = length(var.workers)
  parent_id        = nebius_mk8s_v1_cluster.this.id
  name             = "worker-${count.index}"
  fixed_node_count = var.workers[count.index].size
  platform         = var.workers[count.index].resource.platform
  preset           = var.workers[count.index].resource.preset
}

output "cluster_id" {
  value = nebius_mk8s_v1_cluster.this.id
}
"""

_SLURM_MODULE = """variable "cluster" { type = string }
variable "image_disk_spec" { type = number }

resource "terraform_data" "wait_for_slurm_cluster" {
  input = var.cluster
  provisioner "local-exec" {
    command = "echo waiting for SlurmCluster of $CLUSTER"
    environment = {
      CLUSTER = var.cluster
    }
  }
}
"""

_VALIDATIONS = {
    "company_name": '\n  validation {\n    condition     = length(var.company_name) >= 1 && length(var.company_name) <= 32\n    error_message = "The company name must be 1 to 32 characters long."\n  }',
    # Looks at another variable: what the real one does, too, and why it needs Terraform 1.9.
    "o11y_profile": '\n  validation {\n    condition     = !var.public_o11y_enabled || length(var.o11y_profile) > 0\n    error_message = "O11y profile must be not empty if public o11y enabled is true."\n  }',
}  # fmt: skip


def write_recipe(root: Path, version: str = "1.22.3") -> Path:
    """A checkout of the library in `root`; its soperator directory."""
    soperator = root / "soperator"
    files = {
        "VERSION": f"{version}-2\n",
        "installations/example/terraform.tf": _TERRAFORM,
        "installations/example/main.tf": _MAIN,
        "installations/example/variables.tf": "\n".join(
            _variable(name, *spec) for name, spec in {**_BOTH, **_ONLY[version]}.items()
        ),
        "modules/filestore/main.tf": _FILESTORE_MODULE,
        "modules/k8s/main.tf": _K8S_MODULE,
        "modules/slurm/main.tf": _SLURM_MODULE,
        **{
            f"../modules/{name}/main.tf": f'resource "terraform_data" "{name}" {{\n  input = "installed"\n}}\n'
            for name in ("gpu-operator", "network-operator", "nfs-server")
        },
    }
    for name, text in files.items():
        path = soperator / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return soperator


def _variable(name: str, kind: str, default: str | None) -> str:
    return (
        f'variable "{name}" {{\n  type = {kind}\n'
        + (f"  default = {default}\n" if default is not None else "")
        + _VALIDATIONS.get(name, "")
        + ("\n" if name in _VALIDATIONS else "")
        + "}\n"
    )
