"""Comparing attentions: nothing is trained twice, numbers worked out by hand, and what is said of them."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

import helper.compare
import helper.comparison.task
from helper.comparison import learning
from helper.comparison.cells import FORMS, Cell, Plan, Results, Row
from helper.comparison.page import accuracy_table, answered, leads, means, verdicts
from helper.comparison.task import Sample, Task, commonest
from utils.commands import UsageError
from utils.conversation import Conversation, Image, Turn

pytestmark = pytest.mark.integration

ASSETS = Path(__file__).parents[3] / "assets"
LENGTH = 5  # tokens of an image
PLAN = Plan(
    batch=4,
    embedding_rate=1e-2,
    rates=(1e-3, 2e-3),
    search_singles=4,
    search_names=8,
    asked_singles=(4, 8),
    asked_names=(4,),
    asked_dialogues=(4,),
    held_out_singles=3,
    held_out_names=2,
    held_out_dialogues=2,
    distractors=(0, 1),
    distractor_dialogues=2,
)


def row(form: str, seed: int, *rights: float, first: float = 10.0) -> Row:
    """Of a training that answered these shares of 100 single images right after 4 and 8, and 50 of dialogues."""
    asked = [
        {
            "part": "singles",
            "singles": 4 * number,
            "names": 0,
            "dialogues": 0,
            "seconds": 2.0 * number,
            "operations": 1e9 * number,
            "right": {"overall": [round(100 * right), 100]},
        }
        for number, right in enumerate(rights, start=1)
    ]
    named = {**asked[-1], "part": "names", "names": 4, "seconds": 8.0, "operations": 5e9}
    named["right"] = {"overall": [50, 100], "name": [50, 100]}
    last = {**named, "part": "dialogues", "dialogues": 4, "seconds": 14.0, "operations": 1.3e10}
    last["right"] = {"overall": [50, 100], "match": [10, 40], "same": [40, 60]}
    return {
        "form": form,
        "seed": seed,
        "search": False,
        "rate": 1e-3,
        "losses": [first, 1.0],
        "commonest": {"singles": 0.1, "names": 0.1, "dialogues": 0.4},
        "asked": [*asked, named, last],
        "among_others": {"0": [9, 10], "2": [8, 10]},
        "settings": PLAN.settings,
    }


def test_results_are_kept_and_never_mixed_with_those_of_other_settings(tmp_path: Path) -> None:
    path, cell = tmp_path / "results.jsonl", Cell("causal", 1)
    results = Results(path, PLAN.settings)
    for rate, loss in ((1e-3, 2.0), (2e-3, 1.0)):
        results.add(Cell("causal", 0, rate), {"rate": rate, "last_loss": loss})
    results.add(cell, {"rate": 2e-3})
    again = Results(path, PLAN.settings)
    assert cell in again.rows and len(again.compared()) == 1
    assert again.rate("causal", PLAN) == 2e-3
    with pytest.raises(UsageError, match=r"other settings \(batch\): move it away"):
        Results(path, replace(PLAN, batch=5).settings)
    path.write_text(path.read_text() + '{"form":')
    with pytest.raises(UsageError, match="line 4, is no result"):
        Results(path, PLAN.settings)


def test_means_and_leads_over_seeds() -> None:
    rows = [row("mmca", seed, 0.1, right) for seed, right in enumerate((0.60, 0.70, 0.80))]
    rows += [row("causal", seed, 0.1, right) for seed, right in enumerate((0.55, 0.66, 0.74))]
    of_mmca = means(rows, answered("singles", 8))["mmca"]
    assert of_mmca == pytest.approx((0.7, 4.303 * 0.1 / 3**0.5, 3))
    assert means(rows, answered("dialogues", None, "match"))["mmca"].value == 0.25
    ahead = leads(rows, answered("singles", 8))["mmca"]  # 5, 4 and 6 points
    assert ahead == pytest.approx((0.05, 4.303 * 0.01 / 3**0.5, 3)) and ahead.is_certain
    assert not leads(rows[:3], answered("singles", 8))["mmca"].n  # nothing to compare with


def test_samples_that_it_took() -> None:
    rows = [row("causal", 1, 0.5, 0.9), row("causal", 2, 0.5, 0.6), row("causal", 3, 0.5, 0.6)]
    rows += [row("mmca", 1, 0.95, 0.9), row("mmca", 2, 0.9, 0.9), row("mmca", 3, 0.9, 0.9)]
    # Student's t of two degrees of freedom is 4.303
    assert accuracy_table(rows, "singles", (4, 8)) == [
        ("form", "4", "8", "samples to 90 %", "times causal"),
        ("causal", "50.0 ± 0.0 %", "70.0 ± 43.0 %", "8 (1 of 3)", "1"),
        ("mmca", "91.7 ± 7.2 %", "90.0 ± 0.0 %", "4 (3 of 3)", "0.50"),
        ("the commonest answer of each kind", "10.0 ± 0.0 %", "10.0 ± 0.0 %", "-", "-"),
    ]


@pytest.mark.parametrize(
    ("mmca", "causal", "said"),
    [
        (
            (0.60, 0.70, 0.80),
            (0.55, 0.66, 0.74),
            "certainly more right than causal (+5.0 points ± 2.5, 3 seeds)",
        ),
        ((0.50, 0.71, 0.6), (0.60, 0.70, 0.6), "no certain difference"),
        ((0.5,), (0.6,), "-10.0 points (1 seed)"),
    ],
)
def test_what_is_said_is_what_came_out(mmca: tuple, causal: tuple, said: str) -> None:
    rows = [row("mmca", seed, right, right) for seed, right in enumerate(mmca)]
    rows += [row("causal", seed, right, right) for seed, right in enumerate(causal)]
    first, _, second = verdicts(rows)
    assert first.startswith("**mmca**, single images: ") and said in first
    assert second.startswith("**mmca**, dialogues of all kinds over three images: ")


def test_the_page_takes_a_comparison_that_is_not_finished(tmp_path: Path) -> None:
    results = Results(tmp_path / "comparison.jsonl", PLAN.settings)
    for form, seed in (("causal", 1), ("mmca-none-gate", 1), ("causal", 2)):
        results.add(Cell(form, seed), row(form, seed, 0.5, 0.95, first=10.8))
    helper.compare.write_page(results, tmp_path)
    with PIL.Image.open(tmp_path / "images" / "comparison.png") as picture:
        assert picture.size == (1680, 600)
    text = (tmp_path / "comparison.md").read_text()
    assert "| mmca-none-gate | mmca | none | head | none | 0.001 | 10.8 |" in text
    assert "| match | 25.0 % | 25.0 % |" in text  # by kind
    assert "| 2 | 80.0 % | 80.0 % |" in text  # two other images
    assert "| causal | 0.5 | 1.5 | 0.25 | 2 |" in text  # 4 s for 8 single images, 6 more for 4 dialogues


def test_a_second_decoder_has_a_section_on_the_page_of_the_first(tmp_path: Path) -> None:
    first = Results(tmp_path / "comparison.jsonl", PLAN.settings)
    second = Results(tmp_path / "comparison_gemma3.jsonl", replace(PLAN, decoder="gemma3").settings)
    first.add(Cell("causal", 1), row("causal", 1, 0.5, 0.95))
    helper.compare.write_page(first, tmp_path)
    assert "A second decoder" not in (tmp_path / "comparison.md").read_text()
    for form, rights in (("causal", (0.5, 0.9)), ("mmca", (0.9, 0.9))):
        second.add(Cell(form, 2), {**row(form, 2, *rights), "settings": second.settings})
    helper.compare.write_page(first, tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert "on Gemma 3 270M" in text and "(comparison_gemma3.md)" in text and "Seeds: 2." in text
    assert "| mmca | 4 (1 of 1) | 0.50 | - (0 of 1) | - | - (0 of 1) | - |" in text
    assert "Gemma 3 270M as decoder" not in text  # the rest is the first decoder's


def test_an_interrupted_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth training fails; run again, the three before it are not trained again."""
    trained = []

    def outcome_of(cell: Cell, rate: float, plan: Plan, parts: Path) -> Row:
        trained.append((cell, rate))
        if len(trained) == 4:
            raise RuntimeError("killed")
        if cell.rate:
            return {"rate": rate, "last_loss": rate, "losses": [1.0]}
        return row(cell.form, cell.seed, 0.5, 0.9)

    monkeypatch.setattr(helper.compare, "outcome_of", outcome_of)
    monkeypatch.setattr(helper.compare, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(1))
    monkeypatch.setattr(helper.compare, "Plan", lambda decoder: PLAN)
    monkeypatch.setattr(helper.comparison.task, "task_of", lambda folder, plan: None)
    words = ["--forms", "causal", "mmca", "--seeds", "1", "--docs", str(tmp_path), "--parts", str(tmp_path)]
    with pytest.raises(RuntimeError, match="killed"):
        helper.compare.main(words)
    kept = (tmp_path / "comparison.jsonl").read_text().splitlines()
    assert len(kept) == 3 and not (tmp_path / "comparison.md").exists()
    assert helper.compare.main(words) == 0
    assert len({cell for cell, _ in trained}) == 6 == len(trained) - 1
    assert trained[-1][1] == 1e-3  # the rate whose loss was least
    assert "| mmca | 50.0 %" in (tmp_path / "comparison.md").read_text()


def test_questions_are_the_seeds_and_about_the_style_that_is_held_out(task: Task) -> None:
    first, again, other = (task.questions(seed, PLAN) for seed in (1, 1, 2))
    assert first == again and first != other
    asked = [sample for samples in (*first.among_others.values(), first.singles) for sample in samples]
    for sample in (*asked, *first.dialogues):
        assert all(image.name.startswith("held") for image in sample.conversation.images)
        assert len(sample.kinds) == len(sample.conversation.turns)
    assert {len(sample.conversation.images) for sample in first.among_others[1]} == {2}
    assert {len(sample.conversation.images) for sample in first.dialogues} == {3}
    learnt = list(itertools.islice(task.dialogues(1), 20))
    assert {len(sample.conversation.images) for sample in learnt} == {2, 3}
    assert not any(image.name.startswith("held") for sample in learnt for image in sample.conversation.images)
    for sample in asked:  # each question about an image is answered by what it shows
        for number, turn in enumerate(sample.conversation.turns):
            assert sample.conversation.images[number].name.endswith(turn.answer)


def test_the_commonest_answer_is_that_of_a_questions_kind() -> None:
    samples = [
        Sample(Conversation((Turn("a?", answer), Turn("b?", "yes"))), ("name", "same")) for answer in "xxy"
    ]
    assert commonest(samples) == pytest.approx(5 / 6)


# Of a tiny decoder and encoder.


class _Features:
    """Another constant for each thing, as the encoder's features of an image."""

    def of(self, images: list[Image]) -> torch.Tensor:
        return torch.stack(
            [torch.full((LENGTH, 128), float(len(image.name.split()[-1]))) for image in images]
        )


@pytest.fixture(scope="module")
def task() -> Task:
    learnt, held_out = (
        {thing: [Image(b"", f"{style} {thing}")] * 30 for thing in ("red", "circle", "image", "shape")}
        for style in ("learnt", "held out")
    )
    return Task(ASSETS / "tiny_llama", ASSETS / "tiny_clip", _Features(), learnt, held_out)


@pytest.mark.parametrize("name", ["causal", "mmca", "cross", "mmca-none-gate-summary"])
def test_a_form_learns_and_is_asked_as_it_goes(name: str, task: Task) -> None:
    found = learning.compare(FORMS[name], 1e-3, 1, PLAN, task)
    seen = [(each["singles"], each["names"], each["dialogues"]) for each in found["asked"]]
    assert seen == [(4, 0, 0), (8, 0, 0), (8, 4, 0), (8, 4, 4)]
    assert [each["right"]["overall"][1] for each in found["asked"]] == [3, 3, 6, 8]  # questions
    assert found["among_others"]["0"][1] == 2 and found["among_others"]["1"][1] == 4
    assert len(found["losses"]) == 4 and json.loads(json.dumps(found)) == found
    operations = [each["operations"] for each in found["asked"]]
    assert 0 < operations[0] < operations[1] < operations[2]
    assert learning.compare(FORMS[name], 1e-3, 1, PLAN, task)["losses"] == found["losses"]


def test_without_adapters_there_are_no_dialogues_of_all_kinds(task: Task, tmp_path: Path) -> None:
    plan = replace(PLAN, lora=0, asked_dialogues=())
    results = Results(tmp_path / "results.jsonl", plan.settings)
    found = learning.compare(FORMS["mmca-none-gate"], 1e-3, 1, plan, task)
    results.add(Cell("mmca-none-gate", 1), json.loads(json.dumps(found)))
    helper.compare.write_page(results, tmp_path, "alone")
    text = (tmp_path / "alone.md").read_text()
    assert [each["part"] for each in found["asked"]] == ["singles", "singles", "names"]
    assert "SmolLM2-135M-Instruct, without adapters" in text and "[alone.jsonl](alone.jsonl)" in text
    assert "of all kinds" not in text and "What each of three images shows" in text
    assert (tmp_path / "images" / "alone.png").is_file()


def test_right_answers_are_those_of_greedy_generation(task: Task) -> None:
    learner = learning.Learner(FORMS["mmca"], 1e-2, 1, PLAN, task)
    stream = task.dialogues(1)
    for _ in range(12):
        learner.learn(list(itertools.islice(stream, 4)))
    asked = list(itertools.islice(stream, 4))
    found = learner.right(asked)
    for sample, turns in zip(asked, found, strict=True):
        for turn, is_right in enumerate(turns):
            asked_so_far = sample.conversation.until_answer(turn)
            prompt = learner.processor.encode(asked_so_far, load_images=False)
            ids = torch.from_numpy(prompt.input_ids)[None]
            features = task.features.of(asked_so_far.images)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                answer = learner.model.generate(
                    input_ids=ids,
                    mm_token_type_ids=torch.from_numpy(prompt.mm_token_type_ids)[None],
                    mm_encoder_outputs={"image": BaseModelOutputWithPooling(last_hidden_state=features)},
                    max_new_tokens=8,
                )[0, ids.shape[1] :]
            text = learner.processor.tokenizer.decode(answer, skip_special_tokens=True)
            assert (text.strip() == sample.conversation.turns[turn].answer) == is_right
    assert any(itertools.chain(*found))  # something was learnt


def test_a_search_ends_with_the_mean_of_its_last_steps(task: Task) -> None:
    found = learning.search(FORMS["mmca"], 2e-3, PLAN, task)
    assert len(found["losses"]) == 3  # one of single images, two of dialogues
    assert found["rate"] == 2e-3 and found["last_loss"] == pytest.approx(found["losses"][-1], abs=1e-4)
