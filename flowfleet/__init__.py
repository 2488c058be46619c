"""flowfleet: the shared language of pollers and workers."""

try:
    import fcntl  # noqa: F401 - Windows has none; all three commands come by here before anything that needs it
except ImportError:
    raise SystemExit("Error: flowfleet needs Linux or macOS, so on Windows run it inside WSL.") from None
