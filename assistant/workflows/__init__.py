"""Workflows: the YAML file, the engine that runs the steps, and a journal that survives."""
