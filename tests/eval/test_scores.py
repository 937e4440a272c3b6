"""Scores of a set, worked out by hand."""

import random

import pytest

from eval.scores import Row, accuracy_interval, scores_of


def row(answer, references, kind="", images=0, dialogue=""):
    return Row(dialogue, "", "what?", answer, references, kind, images_so_far=images)


ANSWERS = [
    row("red", ("Red",), "colour", 1, "first"),
    row("red", ("blue",), "colour", 2, "first"),
    row("blue", ("the blue",), "colour", 1, "second"),
    row("2", ("two",), "count", 2, "second"),
    row("3", ("two",), "count", 2, "third"),
]


def test_by_kind_and_by_images_with_the_majority_beside_them():
    scores = scores_of(ANSWERS)
    colour, count = scores.kinds["colour"], scores.kinds["count"]
    assert (colour.count, colour.correct, colour.majority, colour.majority_answer) == (3, 2, 2, "blue")
    assert (count.count, count.correct, count.majority, count.majority_answer) == (2, 1, 2, "2")
    overall = scores.overall
    assert (overall.count, overall.correct, overall.majority, overall.majority_answer) == (5, 3, 4, None)
    assert overall.accuracy == 0.6 and overall.majority_accuracy == 0.8
    assert list(scores.kinds) == ["colour", "count"]
    assert {number: score.count for number, score in scores.images.items()} == {1: 2, 2: 3}
    assert overall.vqa is None and overall.overlap is None


def test_one_kind_names_its_majority_and_nothing_has_no_score():
    assert scores_of([row("x", ("y",))]).overall.majority_answer == "y"
    assert scores_of([]) is None


def test_sentences_are_compared_by_their_words():
    overlap = scores_of([row("a dog in the park", ("A dog in the park.",))]).overall.overlap
    assert overlap.rouge_l == 1


def test_interval_of_lone_answers_is_wilsons():
    """Ten answers, five right: the example of any textbook, 0.2366 to 0.7634."""
    low, high = accuracy_interval([True] * 5 + [False] * 5, list("abcdefghij"))
    assert low < 0.2366 and high > 0.7634  # n / (n - 1) for the variance between clusters
    assert low == pytest.approx(0.2366, abs=0.02)
    low, high = accuracy_interval([True] * 10, list("abcdefghij"))
    assert low == pytest.approx(0.7225, abs=1e-4) and high == pytest.approx(1)


def test_interval_is_wider_where_answers_stand_or_fall_together():
    lone = accuracy_interval([True] * 50 + [False] * 50, [str(number) for number in range(100)])
    together = accuracy_interval([True] * 50 + [False] * 50, [str(number // 10) for number in range(100)])
    assert together[0] < lone[0] < 0.5 < lone[1] < together[1]


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Dialogues of 8 questions whose difficulty differs between dialogues."""
    rng, covered = random.Random(0), 0
    for _ in range(300):
        right, clusters = [], []
        for dialogue in range(60):
            share = rng.choice([0.5, 0.9])
            right += [rng.random() < share for _ in range(8)]
            clusters += [str(dialogue)] * 8
        low, high = accuracy_interval(right, clusters)
        covered += low <= 0.7 <= high
    assert 0.91 <= covered / 300 <= 0.99
