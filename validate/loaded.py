"""Load a graph and run it once: what a user's process takes. ``python -m validate.loaded GRAPH BATCH SEQ THREADS``"""

import sys
from pathlib import Path

import numpy as np

from omni.session import open_session

if __name__ == "__main__":
    graph, batch, seq, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    session = open_session(graph, threads=threads)
    sizes = {"batch": batch, "seq": seq}
    session.run(
        None,
        {
            value.name: np.zeros([sizes.get(axis, axis) for axis in value.shape], np.float32)
            for value in session.get_inputs()
        },
    )
