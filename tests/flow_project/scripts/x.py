"""A program of the flow's own, which needs the flow's package."""

import json
import sys

from ourpackage import deep, look

if __name__ == "__main__":
    json.dump({**look.look(), "deep": deep.__name__}, sys.stdout)
