"""Where a run can go: one module per platform, behind the protocol in `base`."""
