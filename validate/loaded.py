"""Load a graph and run it once, as a user's process does: ``python -m validate.loaded GRAPH THREADS INPUTS``.

INPUTS is a JSON object that maps the name of each input to its shape and, for integers, the value that fills it.
"""

import json
import sys
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common.session import open_session

if __name__ == "__main__":
    graph, threads, inputs = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    session = open_session(graph, threads=threads, low_memory=True)
    fed = {
        name: np.zeros(shape, np.float32) if value is None else np.full(shape, value)
        for name, (shape, value) in inputs.items()
    }
    session.run(None, fed)
