"""Import modules and end, to measure what libraries alone take: ``python -m validate.imports MODULE...``."""

import importlib
import sys

if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
