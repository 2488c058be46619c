"""Writes its environment, working folder and arguments, as JSON, into the file that a parameter names."""

import json
import os
import sys
from pathlib import Path

from prefect import Flow, Parameter, task


@task
def write(out):
    seen = {"environ": dict(os.environ), "cwd": str(Path.cwd()), "argv": sys.argv, "path": sys.path, "pid": os.getpid()}
    Path(out).write_text(json.dumps(seen))


with Flow("environment") as flow:
    write(Parameter("out"))
