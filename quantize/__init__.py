"""Stage 3: calibrate a float32 graph, then write its quantized sibling. Properties of a graph, not of one component."""
