"""Which nodes to quantize: what each costs at the output and saves in size and time, and the cheapest choice."""
