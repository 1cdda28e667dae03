import pytest

from tiprctl.errors import UsageError
from tiprctl.names import parse_names

CHOICES = ("apple", "pear", "plum")


@pytest.mark.parametrize(
    ("text", "names"), [("pear", ("pear",)), (" plum,apple ", ("plum", "apple")), ("", ()), (" , ,pear,", ("pear",))]
)
def test_names_keep_the_order_of_the_list(text, names):
    assert parse_names(text, "fruit", CHOICES) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pear,aple", "There is no fruit named 'aple'\nDid you mean apple? Choices: apple, plum, pear."),
        ("pear,plum, pear", "The fruit 'pear' is named twice\n--fruits\nName each fruit once."),
    ],
)
def test_wrong_names_are_explained(text, message):
    with pytest.raises(UsageError) as raised:
        parse_names(text, "fruit", CHOICES, where="--fruits")
    assert str(raised.value) == message
