"""Load a graph and run it once: what a user's process takes. ``python -m validate.loaded GRAPH LENGTH THREADS``"""

import sys
from pathlib import Path

import numpy as np

from omni.session import open_session

if __name__ == "__main__":
    graph, length, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    session = open_session(graph, threads=threads, lean=True)
    signal, *lengths = session.get_inputs()
    shape = [axis if isinstance(axis, int) else {"batch": 1}.get(axis, length) for axis in signal.shape]
    fed = {signal.name: np.zeros(shape, np.float32)}
    session.run(None, fed | {port.name: np.array([length]) for port in lengths})
