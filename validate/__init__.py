"""Stage 4: measure the artifacts, then judge them. Needs no PyTorch."""
