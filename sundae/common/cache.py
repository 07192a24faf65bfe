"""Where what can be made or downloaded again is kept between calls."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$SUNDAE_CACHE, or sundae/ in the user's cache folder; it need not exist yet."""
    if folder := os.environ.get("SUNDAE_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sundae"
