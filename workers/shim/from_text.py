"""From text: starts a program of this folder in a Python that has none of its files, such as that of a container.

    PYTHON -c TEXT-OF-THIS NAME TEXT NAME TEXT … -- ARGUMENT …

The last named text is the program; those before it are modules that it finds by their names (`sys.modules`).
"""

from __future__ import annotations

import sys
import types


def main() -> None:
    """Make the modules, and be the program."""
    end = sys.argv.index("--")
    given = sys.argv[1:end]
    texts = [(given[at], given[at + 1]) for at in range(0, len(given), 2)]
    for name, text in texts[:-1]:
        module = types.ModuleType(name)
        sys.modules[name] = module
        exec(compile(text, f"{name}.py", "exec"), module.__dict__)  # noqa: S102 - our own text
    name, text = texts[-1]
    sys.argv[:] = [name, *sys.argv[end + 1 :]]
    exec(compile(text, f"{name}.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})  # noqa: S102 - as above


if __name__ == "__main__":
    main()
