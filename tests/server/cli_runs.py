"""What a run of the command line gives back."""

from collections.abc import Callable
from typing import TypeAlias

# run("list") gives exit code, stdout, stderr
Run: TypeAlias = Callable[..., tuple[int, str, str]]
