"""Small files in the layouts of the published pipelines, rows invented."""

import json
import pickle
from pathlib import Path

ASKING = " Please answer yes or no."
FIVE = ("Helpfulness", "Correctness", "Coherence", "Complexity", "Verbosity")
# (question id, answer, [(fact, question, P(yes))]); two answers of one question, one of another
CLAIMED = [
    (0, "A red mug on a desk.", [("There is a mug.", "Is there a mug?", 0.9), ("It is red.", "Is it red?", 0.75)]),
    (
        1,
        "Two blue mugs.",
        [("There are two mugs.", "Are there two mugs?", 0.25), ("They are blue.", "Are they blue?", 0.1)],
    ),
    (2, "A cat sleeps.", [("A cat sleeps.", "Does a cat sleep?", 0.6)]),
]


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rlaifv(folder: Path, images: Path | None = None) -> dict[str, Path]:
    """answers, facts, questions and autocheck, as llava15_gen_data, llama3_8b_inference and minicpmv_autocheck have
    them: metainfos hold what the row before had."""
    image = str((images or folder) / "a.png")
    found: dict[str, list[dict]] = {name: [] for name in ("answers", "facts", "questions", "autocheck")}
    for number, text, claims in CLAIMED:
        ds_id, asked = ("d7", "What is on the desk?") if number < 2 else ("d8", "What does the cat do?")
        infos = {"image_path": image, "reference": "A mug.", "origin_file": "f"}
        answer = {
            "question_id": number, "ds_question_id": ds_id, "raw_question": asked, "answer": text, "metainfos": infos,
            "model_path": "m",
        }  # fmt: skip
        facts, questions = [fact for fact, _, _ in claims], [question for _, question, _ in claims]
        split = {
            "raw_facts": "\n".join(["### Facts:", *(f"- {fact}" for fact in facts)]), "facts": facts,
            "raw_changed_facts": "\n".join(["### Modified sentences:", *(f"- {q}" for q in questions)]),
            "changed_facts": questions,
        }  # fmt: skip
        found["answers"].append(answer)
        found["facts"].append(answer | split)
        for fact, question, yes in claims:
            origin = {
                "origin_question": asked, "origin_answer": text, "origin_fact": fact, "origin_changed_fact": question,
                "origin_all_facts": facts, "origin_changed_all_facts": questions,
            }  # fmt: skip
            row = {
                "question_id": number, "ds_question_id": ds_id, "image_path": image, "question": question + ASKING,
                "metainfos": infos | origin,
            }  # fmt: skip
            found["questions"].append(row)
            found["autocheck"].append({
                "question_id": number, "ds_question_id": ds_id, "raw_question": row["question"], "answer": "Yes",
                "scores": {"yes": yes / 2, "Yes": yes / 4, "no": 0.75 - 0.75 * yes, "No": 0.0},
                "metainfos": {k: v for k, v in row.items() if k != "question"}, "model_path": "m",
            })  # fmt: skip
    return {name: lines(folder / f"rlaifv_{name}.jsonl", rows) for name, rows in found.items()}


def sima(folder: Path) -> dict[str, Path]:
    base = {"image_path": "a.png", "text": "What is this?", "ground_truth": "A mug.", "model_id": "m"}
    responses = [
        base | {"greedy_decodes": "A cat.", "temperature_decodes_1": "A red mug."},
        base | {"text": "How many?", "greedy_decodes": "One.", "temperature_decodes_1": "Two."},
    ]
    critic = [
        {"id": "a.png", "question": f"Choose.\nQuestion: [{row['text']}]\nGround truth: [x]\nASSISTANT:\n",
         "rank_result": said, "temperature_decodes_1": row["temperature_decodes_1"],
         "greedy_decodes": row["greedy_decodes"], "model_id": "m"}
        for row, said in zip(responses, ("The first is better: [[1]]", "They are alike."), strict=True)
    ]  # fmt: skip
    files = {"responses": responses, "results": critic}
    return {name: lines(folder / f"sima_{name}.jsonl", rows) for name, rows in files.items()}


def mllm_dpo(folder: Path) -> dict[str, Path]:
    questions = [{"question_id": n, "image": "a.png", "text": f"What is {n}?"} for n in range(2)]
    answers = [
        {"question_id": n, "prompt": f"What is {n}?", "text": f"Answer {n}{m}.", "answer_id": f"x{n}{m}",
         "model_id": "m", "metadata": {}}
        for m in range(2) for n in range(2)
    ]  # fmt: skip
    return {
        "questions": lines(folder / "mllm_questions.jsonl", questions),
        "answers": lines(folder / "mllm_answers.jsonl", answers),
    }


CAPTIONS = {
    "0_0": 'A brown dog lies beside two buckets. A sign says "OPEN".', "0_1": "A large dog and a cat.", "1_0": "A bus.",
}  # fmt: skip
DECOMPOSED = {
    "0_0": {"attribute": " (brown, dog)", "count": " (two, buckets)", "entity": " (dog, buckets)",
            "relation": " (dog, beside, buckets)"},
    "0_1": {"attribute": " (large, dog)", "count": " NONE", "entity": " (dog, cat)", "relation": " NONE"},
    "1_0": {"attribute": " NONE", "count": " NONE", "entity": " (bus)", "relation": " NONE"},
}  # fmt: skip


def dgpref(folder: Path) -> dict[str, Path]:
    """captions and decomposition, with names.json and prompts.txt."""
    (folder / "names.json").write_text(json.dumps(["7", "9"]))
    (folder / "prompts.txt").write_text("Describe it.\nTell all.\n")
    files = {}
    for name, content in (("captions", CAPTIONS), ("decomposition", DECOMPOSED)):
        files[name] = folder / f"dgpref_{name}.pkl"
        files[name].write_bytes(pickle.dumps(content))
    return files
