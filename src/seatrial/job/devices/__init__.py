"""Reading a node's devices: one module for each way to ask, and the choice between them. No torch."""
