"""Federated fine-tuning over `fedkernels`: `run` a config, `load` a finished run.

>>> import python_api
>>> sorted(python_api.__all__)
['InputError', 'Interrupted', 'Run', 'RunFailed', 'load', 'run']
"""

from python_api.errors import InputError, RunFailed

# Imported here at once, not lazily: `run` names a function and the folder that it stands in, and
# a later first import of the folder would bind its name over the function.
from python_api.run import Interrupted, Run, load, run

__all__ = ["InputError", "Interrupted", "Run", "RunFailed", "load", "run"]
