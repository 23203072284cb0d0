"""From the checkpoint to ``models/source/<component>``, with only the tensors that the component needs."""
