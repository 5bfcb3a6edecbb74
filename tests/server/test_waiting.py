from server.waiting import WaitingForAdapters


def test_adapters_are_loaded_in_the_order_of_their_first_rows() -> None:
    waiting: WaitingForAdapters[int] = WaitingForAdapters()
    assert not waiting
    for row, key in enumerate("abac"):
        waiting.add(key, row)
    assert waiting
    assert [waiting.next() for _ in range(3)] == [("a", [0, 2]), ("b", [1]), ("c", [3])]
    assert not waiting


def test_rows_that_come_during_a_load_are_taken_with_it() -> None:
    waiting: WaitingForAdapters[int] = WaitingForAdapters()
    waiting.add("a", 0)
    waiting.next()
    waiting.add("a", 1)
    assert not waiting
    assert waiting.take("a") == [0, 1]
    waiting.add("a", 2)
    assert waiting.next() == ("a", [2])


def test_clear_forgets_all() -> None:
    waiting: WaitingForAdapters[int] = WaitingForAdapters()
    waiting.add("a", 0)
    waiting.clear()
    assert not waiting
