"""Fetch from the checkpoint to ``models/source/<component>`` only the tensors that the component needs."""
