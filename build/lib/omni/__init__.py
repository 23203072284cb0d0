"""The vocabulary that all stages share: parameters, checkpoints, components, graphs, artifacts, metrics."""
