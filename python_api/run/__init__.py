"""One run: its folder, what is recorded in it, and the runner that ties both to an algorithm.

Nothing here imports torch until a run starts, so that `fedkernels --help` is quick.
"""

from python_api.run.folder import RunFolder
from python_api.run.interrupt import Interrupted
from python_api.run.recorder import Recorder
from python_api.run.result import Run, load
from python_api.run.runner import run

__all__ = ["Interrupted", "Recorder", "Run", "RunFolder", "load", "run"]
