"""What a mistake ends in."""


def assert_one_sentence(result, *words):
    status, _, err = result
    assert status == 2, err
    line, *rest = err.splitlines()
    assert not rest, err
    assert line.startswith("error: "), line
    for word in words:
        assert str(word) in line, line
