"""Which texts say nearly the same."""

import pytest

from lorif_hf.reports.duplicates import NearDuplicates


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()


@pytest.mark.parametrize(
    "first, second, alike",
    [
        ("Paris, the capital.", "paris  the\ncapital", True),
        ("ＰＡＲＩＳ ① ﬁn", "paris 1 fin", True),  # as compatibility forms
        ("Paris is the capital", "Rome is the capital", False),
        (" ".join(LONG), " ".join(LONG[:-1]), True),  # 11 of 12 shingles
        (" ".join(LONG), " ".join([*LONG[:8], "x", *LONG[9:]]), False),  # 7 of 17
        (" ".join(LONG), " ".join(reversed(LONG)), False),
        ("法国的首都是巴黎。巴黎是法国的首都", "法国的首都是巴黎 巴黎是法国的首都!", True),
        ("", "", False),
        ("...", "...", False),
        (None, None, False),
    ],
)
def test_texts_that_differ_in_little_are_alike(first, second, alike):
    duplicates = NearDuplicates({3: first, 8: second})
    assert duplicates.first_like(8, [3]) == (3 if alike else None)
    assert duplicates.first_like(3, [8]) == (8 if alike else None)


def test_the_first_of_several_is_named():
    duplicates = NearDuplicates({0: "a b", 1: "c", 2: "A b.", 3: "a  B"})
    assert duplicates.first_like(3, [1, 2, 0]) == 2 and duplicates.first_like(3, []) is None
