"""What answers are worth, worked out by hand."""

import pytest

from eval.scores import vqa_accuracy, word_overlap
from utils.answers import is_correct, normalised


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
    assert is_correct("There are two.", ["there are 2"])
    assert is_correct("crimson", ["red", "Crimson"])
    assert not is_correct("red circle", ["red"])
    assert not is_correct("", ["red"])
    assert not is_correct("35", ["3.5"])


def test_vqa_accuracy_leaves_one_person_out_at_a_time():
    """Of 10, 2 agree: min(1, 1/3) for each of them left out, min(1, 2/3) for the 8 others."""
    assert vqa_accuracy("red", ["Red"] * 2 + ["blue"] * 8) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_accuracy("red", ["red"] * 4 + ["blue"] * 6) == 1
    assert vqa_accuracy("red", ["blue"] * 10) == 0
    assert vqa_accuracy("red", ["red"] * 2) is None


def test_word_overlap_of_an_equal_and_of_a_foreign_answer():
    wanted = [["A red circle, on the left side."], ["Two dogs run over a green field."]]
    same = word_overlap(["a red circle on the left side", "two dogs run over a green field"], wanted)
    assert same.bleu == pytest.approx(1, abs=1e-6) and same.rouge_l == 1 and same.cider == pytest.approx(10)
    none = word_overlap(["nothing like it", "nor this"], wanted)
    assert none.rouge_l == 0 and none.cider == 0 and none.bleu < 1e-3


def test_rouge_l_by_hand():
    """Common subsequence "the cat sat": precision 3/4, recall 3/6; beta 1.2 as COCO has it."""
    score = word_overlap(["the cat quietly sat", "x"], [["the old cat sat down here"], ["y"]])
    expected = (1 + 1.44) * 0.75 * 0.5 / (0.5 + 1.44 * 0.75)
    assert score.rouge_l == pytest.approx(expected / 2)
