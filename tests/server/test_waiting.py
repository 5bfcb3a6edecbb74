from server.waiting import WaitingForAdapters


def test_adapters_are_loaded_in_the_order_of_their_first_rows() -> None:
    waiting: WaitingForAdapters[int] = WaitingForAdapters()
    assert waiting.since is None
    for row, key in enumerate("abac"):
        waiting.add(key, row, 10 + row)
    assert waiting.since == 10
    assert [waiting.next() for _ in range(3)] == [("a", [0, 2]), ("b", [1]), ("c", [3])]
    assert waiting.since is None


def test_rows_that_come_during_a_load_are_taken_with_it() -> None:
    waiting: WaitingForAdapters[int] = WaitingForAdapters()
    waiting.add("a", 0, 1)
    waiting.next()
    waiting.add("a", 1, 2)
    assert waiting.since is None
    assert waiting.take("a") == [0, 1]
    waiting.add("a", 2, 3)
    assert waiting.since == 3
    assert waiting.next() == ("a", [2])


def test_clear_forgets_all() -> None:
    waiting: WaitingForAdapters[int] = WaitingForAdapters()
    waiting.add("a", 0, 1)
    waiting.clear()
    assert waiting.since is None
