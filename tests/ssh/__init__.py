"""A real sshd on this machine, for tests."""
