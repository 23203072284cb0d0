"""What the run-time and the stages of the build share: artifacts, errors, sessions, contracts, metrics."""
