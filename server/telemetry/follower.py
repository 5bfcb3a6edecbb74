"""The log of the whole server where its operator looks: what Ray's processes write, on the launcher's own stderr.

Ray keeps the stderr of each of its workers in a file. A thread follows those files and passes on the lines that are
ours, which are JSON objects; whatever else Ray or a library printed stays where it is. Nobody ever waits for it: a
terminal that stands still holds up this thread alone. Knows nothing of what the lines say.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EVERY_S = 0.3
_OURS = b'{"event"'


class Follower:
    """Passes each new line of the files `pattern` in `folder` to `write`, without its end."""

    def __init__(self, folder: Path, write: Callable[[str], object], pattern: str = "worker-*.err") -> None:
        self._folder = folder
        self._pattern = pattern
        self._write = write
        self._read_bytes: dict[Path, int] = {}

    def look(self) -> None:
        """Pass on what is new; half a line waits for its end."""
        for path in sorted(self._folder.glob(self._pattern)):
            at = self._read_bytes.get(path, 0)
            try:
                with path.open("rb") as file:
                    file.seek(at)
                    whole, end, _ = file.read().rpartition(b"\n")
            except OSError:
                continue  # it is gone, or not there yet
            self._read_bytes[path] = at + len(whole) + len(end)
            for line in whole.split(b"\n"):
                if line.startswith(_OURS):
                    self._write(line.decode("utf-8", "replace"))


@contextmanager
def following(folder: Path, write: Callable[[str], object]) -> Iterator[None]:
    """Follow the logs in `folder` until the end of the block, and once more then."""
    follower = Follower(folder, write)
    is_over = threading.Event()

    def follow() -> None:
        while not is_over.wait(EVERY_S):
            follower.look()
        follower.look()

    thread = threading.Thread(target=follow, name="adakron-logs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(5)
