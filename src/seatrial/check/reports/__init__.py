"""A verdict as people and machines read it: the terminal, JUnit XML, one HTML page. All from `model`."""
