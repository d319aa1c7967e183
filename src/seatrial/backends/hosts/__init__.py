"""Several machines over plain ssh, without a scheduler: ``--on hosts``."""
