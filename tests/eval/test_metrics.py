"""Scores worked out by hand."""

import pytest

from eval.metrics import Score, Scored, is_correct, normalised, scores_of


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("Red.", "red"),
        ("  The red   circle!", "red circle"),
        ("Two", "2"),
        ("an apple, a pear", "apple pear"),
        ("3.5", "3.5"),
        ("1,000 items.", "1,000 items"),
        ("It's left-hand", "it s left hand"),
        ("a", "a"),
        ("", ""),
        ("Öl", "öl"),
    ],
)
def test_normalisation(answer, expected):
    assert normalised(answer) == expected


def test_exact_match():
    assert is_correct("There are two.", "there are 2")
    assert not is_correct("red circle", "red")
    assert not is_correct("", "red")
    assert not is_correct("35", "3.5")


def test_scores_by_kind_with_the_majority_beside_them():
    scores = scores_of(
        [
            Scored("red", "Red", "colour"),
            Scored("red", "blue", "colour"),
            Scored("blue", "the blue", "colour"),
            Scored("2", "two", "count"),
            Scored("3", "two", "count"),
        ]
    )
    assert scores.kinds["colour"] == Score(count=3, correct=2, majority=2, majority_answer="blue")
    assert scores.kinds["count"] == Score(count=2, correct=1, majority=2, majority_answer="2")
    assert scores.overall == Score(count=5, correct=3, majority=4, majority_answer=None)
    assert scores.overall.accuracy == 0.6 and scores.overall.majority_accuracy == 0.8
    assert list(scores.kinds) == ["colour", "count"]


def test_one_kind_names_its_majority_and_nothing_has_no_score():
    assert scores_of([Scored("x", "y")]).overall.majority_answer == "y"
    assert scores_of([]) is None
