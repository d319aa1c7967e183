"""From a run to what others load: packaged, promoted on evidence, rolled back."""
