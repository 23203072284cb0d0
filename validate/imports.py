"""Import modules and exit, to measure the libraries' memory: ``python -m validate.imports MODULE...``."""

import importlib
import sys

if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
