"""Engines and libraries of others, on bundles as they are on disk."""
