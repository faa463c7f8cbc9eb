"""The published implementation: what references are recorded with."""
