"""A cluster to run on: Nebius by the Soperator recipe, or bare nodes."""
