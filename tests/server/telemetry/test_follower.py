from pathlib import Path

from server.telemetry.follower import Follower, following


def test_lines_that_are_ours_are_passed_on_once_whole_and_in_order(tmp_path: Path) -> None:
    lines: list[str] = []
    follower = Follower(tmp_path, lines.append)
    follower.look()
    one, other = tmp_path / "worker-1.err", tmp_path / "worker-2.err"
    one.write_bytes(b':job_id:0100\n{"event": "a"}\nTraceback\n{"event": "b"')
    (tmp_path / "raylet.err").write_bytes(b'{"event": "not a worker"}\n')
    follower.look()
    assert lines == ['{"event": "a"}']
    other.write_bytes(b'{"event": "c"}\n')
    with one.open("ab") as file:
        file.write(b'}\n{"event": "\xff"}\n')
    follower.look()
    follower.look()
    assert lines[1:] == ['{"event": "b"}', '{"event": "\ufffd"}', '{"event": "c"}']


def test_what_is_written_last_is_passed_on_too(tmp_path: Path) -> None:
    lines: list[str] = []
    with following(tmp_path, lines.append):
        (tmp_path / "worker-1.err").write_bytes(b'{"event": "the end"}\n')
    assert lines == ['{"event": "the end"}']
