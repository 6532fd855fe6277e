"""What HallusionBench's judge is asked, in the official prompts or ours: whether an answer agrees with the reference,
and whether two say the same; and to which weakness a wrong answer is put down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmfast.evals.asking import call, replies
from mmfast.evals.base import Answer, Question, Scoring

CORRECT, UNCLEAR = "1", "2"
OWN_CHECK = (
    "Compare an answer with the reference answer to a question. Write “correct” if they agree, “incorrect” if they "
    "contradict each other, and “unclear” if the answer does not settle the question.\n\nQuestion:"
)
OWN_SAME = (
    "Two responses were given to two questions that you do not see. Write “same” if both can be true together, "
    "“different” if they contradict each other.\n\nresponse1:"
)


def good_verdicts(question: Question) -> tuple[str, ...]:
    """The verdicts that count: not knowing is right where a figure would be needed and is not shown."""
    without = question.truth["category"] == "VS" and question.truth["figure_id"] == "0"
    return (CORRECT, UNCLEAR) if without else (CORRECT,)


def checked(
    questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring, prompts: Mapping[str, str]
) -> dict[str, str]:
    """The judge's verdict of each answer: "1" correct, "0" incorrect, "2" neither word."""
    marks = ("\nReference answer: ", "\nPrediction answer:", "\nOutput:")
    official = prompts.get("evaluate_by_chatgpt.prompt", "")
    if prompts and not all(official.count(mark) == 1 for mark in marks):
        raise ValueError("HallusionBench's utils.py has no prompt of evaluate_by_chatgpt as known: another version?")
    start = official.split(marks[0])[0] if official else OWN_CHECK

    def asked(q: Question) -> str:
        filled = (q.truth["asked"], q.truth["reference"], answers[q.id].text)
        return start + "".join(text + mark for text, mark in zip(filled, marks, strict=True))

    calls = [call(f"{q.id}:check", asked(q), temperature=1.0) for q in questions]
    said = replies(scoring, calls)
    return {q.id: verdict(said[f"{q.id}:check"]) for q in questions if f"{q.id}:check" in said}


def verdict(reply: str) -> str:
    told = reply.lower()
    return "0" if "incorrect" in told else CORRECT if "correct" in told else UNCLEAR


def blamed_for(
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    said: Mapping[str, str],
    scoring: Scoring,
    prompts: Mapping[str, str],
) -> dict[str, str]:
    """LH, VI or Mix for each question that counts as a failure of one kind."""
    original = {q.truth["pair"]: q for q in questions if q.truth["figure_id"] == "0"}
    lacking = [q.id for q in questions if q.truth["pair"] not in original]
    if lacking:
        raise ValueError(f"HallusionBench has no question of figure 0 for {lacking[0]}: is the file whole?")
    first = {q.id: said[original[q.truth["pair"]].id] for q in questions}
    open_ = [q for q in questions if _cause(q, said[q.id], first[q.id], None) == "?"]
    start, end = prompts.get("check_same_by_chatgpt.prompt", OWN_SAME), "\nresponse2: "
    start = start.split(end)[0]
    calls = [
        call(
            f"{q.id}:same",
            f"{start}{answers[q.id].text}{end}{answers[original[q.truth['pair']].id].text}\nOutput:",
            temperature=1.0,
        )
        for q in open_
    ]
    told = replies(scoring, calls)
    same = {q.id: "same" in told.get(f"{q.id}:same", "").lower() for q in open_}
    found = {q.id: _cause(q, said[q.id], first[q.id], same.get(q.id)) for q in questions}
    return {name: cause for name, cause in found.items() if cause}


def _cause(question: Question, now: str, first: str, same: bool | None) -> str:
    """The official table of causes: `first` is the verdict of the original; "?" where it depends on `same`."""
    truth = question.truth
    if truth["figure_id"] == "0":
        if truth["category"] == "VD":
            return "" if now == CORRECT else "VI"
        return "LH" if now == "0" else ""
    if now == CORRECT:
        return ""
    if truth["category"] == "VD":
        return "VI" if first != CORRECT or now == UNCLEAR else "?" if same is None else "Mix" if same else "VI"
    if first == "0":
        return "Mix" if now == UNCLEAR else "?" if same is None else "LH" if same else "Mix"
    if first == UNCLEAR or now == UNCLEAR or truth["visual_input"] == "1":
        return "VI"
    return "?" if same is None else "LH" if same else "VI"
