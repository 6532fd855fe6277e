"""The objects that an answer names, as a judge lists them: Object HalBench's extractor.

A language model lists phrases; spaCy's lemmas of them are matched with the list of synonyms.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence

from mmfast.engines.base import Decode
from mmfast.evals.base import Call, Scoring
from mmfast.evals.coco import Vocabulary
from mmfast.evals.judge import until_parsed

NOUNS = ("NNP", "NNPS", "NN", "NNS")
SHORT = 3  # words; an answer of no more is not shown to the judge and names nothing
Analysis = Callable[[str], list[tuple[str, str]]]  # a phrase -> (lemma, tag) of each of its tokens
OWN = (
    "Below are a question about an image and an answer that was given to it. List the things that, by the answer, can "
    "be seen in the image: those alone that it names, each by its noun without colour, material or other attributes. "
    'Reply with a JSON list of texts and nothing else, for example ["dog", "wine glass"], or [] where there are none.'
    "\n\n"
    "Question: {question}\n\nAnswer: {answer}\n"
)


def extracted(
    asked: Mapping[str, tuple[str, str]], vocabulary: Vocabulary, scoring: Scoring, analysis: Analysis | None = None
) -> dict[str, list[str]]:
    """`asked`: key -> (question, answer). The words of each answer, each once; one for which the judge gives no list is
    left out, and a note says so."""
    # What the judge is asked
    prompt, calls = _prompt(scoring), []
    for key, (question, answer) in asked.items():
        if len(answer.split()) > SHORT:
            text = prompt.replace("{question}", question).replace("{answer}", answer)
            message = {"role": "system", "content": text}
            calls.append(Call(key=key, messages=(message,), decode=Decode(temperature=0.2, max_tokens=512)))
    if not calls:
        return {key: [] for key in asked}
    # What it says; spaCy's model is opened before, for it may be missing
    judge, out = scoring.judged_by(), {}
    analysis = analysis or spacy_analysis(str(scoring.options.get("spacy", "en_core_web_trf")))
    lists = {key: said for key, (said, _) in until_parsed(judge, calls, parsed, counts=scoring.counts).items()}
    for key in asked:
        phrases = lists.get(key, [])
        if phrases is not None:
            out[key] = matched(phrases, vocabulary, analysis)
    if lost := [key for key in asked if key not in out]:
        scoring.notes.append(
            f"{len(lost)} answers are left out, for the judge gave no list for them (the first: {lost[0]})"
        )
    return out


def _prompt(scoring: Scoring) -> str:
    """The official prompt is a text in the official script, which is read and not run."""
    if scoring.data.path("script") is None:
        scoring.own_prompt = True
        return OWN
    for node in ast.walk(ast.parse(scoring.data.read("script").decode())):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "prompt_template":
            return str(ast.literal_eval(node.value))
    raise ValueError("eval_gpt_obj_halbench.py has no prompt_template: give RLHF-V's or RLAIF-V's own file")


def parsed(reply: str) -> list[str] | None:
    """The list in a reply: all of it, or its last line where it holds one."""
    for text in (reply, reply.strip().split("\n")[-1] if '["' in reply else ""):
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            continue
        return [str(each) for each in found] if isinstance(found, list) else None
    return None


def matched(phrases: Sequence[str], vocabulary: Vocabulary, analysis: Analysis) -> list[str]:
    """What the phrases come to, each once: names of two words that are known, else each run of nouns."""
    out: list[str] = []
    for phrase in phrases:
        tokens = analysis(f"a {phrase}")
        runs = [""]
        for lemma, tag in tokens:
            runs = [*runs[:-1], f"{runs[-1]} {lemma}"] if tag in NOUNS else [*runs, ""]
        out += vocabulary.join([lemma for lemma, _ in tokens], only=True) or [run.strip() for run in runs if run]
    return list(dict.fromkeys(out))


def spacy_analysis(model: str) -> Analysis:
    """Models differ in some lemmas ("geese" stays for the small one), so the official one is the default."""
    try:
        import spacy

        nlp = spacy.load(model)
    except (ImportError, OSError):
        raise ValueError(
            f"Object HalBench's flavour llm finds lemmas by spaCy's {model}, which is not installed: install spacy and "
            "that model from github.com/explosion/spacy-models (the package en-core-web-trf of PyPI is not it), name "
            "another one by the option spacy, or take the flavour rules"
        ) from None
    return lambda phrase: [(token.lemma_, token.tag_) for token in nlp(phrase)]
