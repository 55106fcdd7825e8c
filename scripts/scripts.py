"""Stand in for the package `scripts` when one of its files is run as a command.

Python then searches the directory of that file, not the project's, so `import scripts` finds this
module. It makes itself the package, and adds the project's directory. In .venv, where the project
is installed, that changes nothing; with another Python, a command can still answer --help and say
what it lacks.
"""

import sys
from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
sys.path.append(str(Path(__file__).resolve().parents[1]))
