"""One small file of each format, rows invented after the published forms."""

import base64
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


PART = [{"type": "image"}, {"type": "text", "text": "What is on the desk?"}]
TRL = [
    {"id": "a", "images": ["a.png"], "prompt": [user(PART)], "chosen": [assistant("A red mug.")],
     "rejected": [assistant("A blue mug.")], "weight": 0.5, "segments": {"chosen": [[2, 5, 2.0]], "rejected": [[2, 6]]},
     "scores": {"chosen": 1.0, "rejected": 0.0}, "meta": {"k": "v"}},
    {"id": "b", "images": [], "prompt": [{"role": "system", "content": "Be brief."}, user("Yes?")],
     "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]},
]  # fmt: skip
LLAVA = [
    {"id": "1", "image": "a.png", "conversations": [human("<image>\nWhat is this?"), gpt("A mug."), human("Red?"),
                                                      gpt("It is red.")]},
    {"id": "2", "image": ["a.png", "b.png"], "conversations": [human("<image>\n<image>\nTwo?"), gpt("Two.")]},
    {"id": "3", "conversations": [human("Is it?"), gpt("It is.")], "note": "kept"},
]  # fmt: skip
LOGPS = {"ref_win_logp": -14.25, "ref_rej_logp": -21.5, "ref_win_avg_logp": -1.5, "ref_rej_avg_logp": -3.5,
         "ref_win_per_token_logp": [-9.0, -0.25], "ref_rej_per_token_logp": [-9.0, -0.5]}  # fmt: skip
MLLM_DPO = [
    {"id": "0", "image": "a.png", "question": human("<image>\nWhat is this?"), "chosen": gpt("A red mug."),
     "rejected": gpt("A cat."), "Helpfulness_gpt4v": 4.0, "Helpfulness_candidate": 1.0, **LOGPS},
    {"id": "1", "question": human("Is it?"), "chosen": gpt("Yes."), "rejected": gpt("No.")},
    {"id": "2", "chosen": [human("Is it?"), gpt("Yes."), human("Red?"), gpt("It is.")],
     "rejected": [human("Is it?"), gpt("Yes."), human("Red?"), gpt("No.")]},
]  # fmt: skip
MLLM_DPO_LOOSE = [
    {"image": None, "question": repr(human("Is it?")), "chosen": gpt("Yes."), "rejected": gpt("No.")},
    {"image": "a.png", "question": repr(human("<image>\nIs it?")), "chosen": gpt("Yes."), "rejected": gpt("No.")},
]
CRITIC = "Choose.\nQuestion: [How many?]\nGround truth: [x]\nQuestion: [What is this?]\nResponse 1: [..]\nASSISTANT:\n"
SIMA = {
    "prompts": [{"image": "a.png", "text": "What is this?", "ground_truth": "A mug."}],
    "responses": [{"image_path": "a.png", "text": "What is this?", "ground_truth": "A mug.",
                   "greedy_decodes": "A cat.", "temperature_decodes_1": "A red mug.", "model_id": "m"}],
    "critic": [{"id": "a.png", "question": CRITIC, "rank_result": "Because of [[2]] ... so [[1]].",
                "temperature_decodes_1": "A red mug.", "greedy_decodes": "A cat.", "model_id": "m"}],
    "pairs": [{"id": "01", "image": "a.png", "conversations": [human("<image>\nWhat is this?"), gpt("A red mug.")],
               "rejected_conversations": [human("<image>\nWhat is this?"), gpt("A cat.")]}],
}  # fmt: skip
SWIFT = [
    {"id": "1", "messages": [user("<image>\nWhat is this?"), assistant("A mug.")], "rejected_response": "A cat.",
     "images": ["a.png"]},
    {"id": "2", "messages": [user("<image>\nWhat is this?"), assistant("A mug.")],
     "rejected_messages": [user("<image>\nWhat is it?"), assistant("A cat.")], "images": ["a.png"],
     "rejected_images": ["b.png"]},
]  # fmt: skip
SHAREGPT = [
    {"id": "1", "conversations": [human("<image>\nWhat is this?")], "chosen": gpt("A mug."), "rejected": gpt("A cat."),
     "images": ["a.png"]},
]  # fmt: skip
ALPACA = [
    {"id": "1", "instruction": "Is it?", "output": "It is."},
    {
        "id": "2",
        "instruction": "<image>\nRed?",
        "system": "Be brief.",
        "history": [["What is this?", "A mug."]],
        "chosen": "It is red.",
        "rejected": "It is blue.",
        "images": ["a.png"],
    },
]
HH = [
    {
        "id": "1",
        "chosen": "\n\nHuman: What is this?\n\nAssistant: A mug.\n\nHuman: Red?\n\nAssistant: It is.",
        "rejected": "\n\nHuman: What is this?\n\nAssistant: A mug.\n\nHuman: Red?\n\nAssistant: No.",
    },
]
TUPLE = [-3.0, -1.0, [-2.0, -1.0], -4.0, -2.0, [-3.0, -1.0]]


def rlhfv_row(data: bytes, logps=None) -> dict:
    text = {"question": "What is on the desk?", "chosen": "A red mug.", "rejected": "A blue mug."}
    return {
        "ds_name": "demo",
        "image": {"bytes": data, "path": "a.png"},
        "text": json.dumps(text | ({"logps": logps} if logps else {})),
        "origin_dataset": "demo",
        "origin_split": json.dumps({"model": "m1", "type": "question answering"}),
        "idx": 7,
        "image_path": "a.png",
    }


def rlaifv_row(data: bytes, logps=None) -> dict:
    row = {
        "ds_name": "demo2",
        "image": {"bytes": data, "path": "b.png"},
        "question": "Describe the scene.",
        "chosen": "Two cows graze.",
        "rejected": "Three cows graze near a barn.",
        "origin_dataset": "demo",
        "origin_split": json.dumps({"model": "g", "feedback": "j", "type": "detailed description"}),
        "idx": "9",
        "image_path": "b.png",
    }
    return row | ({"logps": json.dumps({"logps": logps})} if logps else {})


def tsv_line(data: bytes) -> str:
    def b64(value) -> str:
        return base64.b64encode(json.dumps(value).encode()).decode()

    text = b64(["What is on the desk?", "A red mug.", "A blue mug.", TUPLE])
    image = base64.b64encode(data).decode()
    return "\t".join(["demo", image, text, "demo", b64({"model": "m1"}), "7", "a.png"])


DGPREF = {
    "2350001": {
        "cap_scores": [-1, 0, -3],
        "cap_avg_scores": [-0.5, 0.0, -0.75],
        "sample_pair": [
            {"prefer": "A red mug.", "reject": "A blue cat.", "prefer_idx": 1, "reject_idx": 2},
            {"prefer": "A red mug.", "reject": "A pen.", "prefer_idx": 1, "reject_idx": 0},
        ],
    },
    "2350002": {
        "cap_scores": [0, -1, 0],
        "cap_avg_scores": [0.0, -0.5, 0.0],
        "sample_pair": [{"prefer": "Two cows.", "reject": "Three.", "prefer_idx": 0, "reject_idx": 1}],
    },
}


def write_all(folder: Path, picture: bytes) -> dict[str, Path]:
    """name -> file; the name's part before a dash is the format."""
    files: dict[str, Path] = {}

    def lines(name: str, rows: list) -> None:
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(r) + "\n" for r in rows))

    def array(name: str, rows: list) -> None:
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps(rows, indent=1))

    def parquet(name: str, rows: list) -> None:
        files[name] = folder / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), files[name])

    lines("trl", TRL)
    array("llava", LLAVA)
    array("mllm_dpo", MLLM_DPO)
    for kind, rows in SIMA.items():
        (array if kind == "pairs" else lines)(f"sima-{kind}", rows)
    lines("swift", SWIFT)
    array("swift-sharegpt", SHAREGPT)
    array("alpaca", ALPACA)
    lines("hh", HH)
    parquet("rlhfv", [rlhfv_row(picture)])
    parquet("rlhfv-logp", [rlhfv_row(picture, TUPLE)])
    files["rlhfv-tsv"] = folder / "demo-1.tsv"
    files["rlhfv-tsv"].write_text(tsv_line(picture) + "\n")
    parquet("rlaifv", [rlaifv_row(picture)])
    parquet("rlaifv-logp", [rlaifv_row(picture, TUPLE)])
    files["dgpref"] = folder / "pos_neg_pairs.pkl"
    files["dgpref"].write_bytes(pickle.dumps(DGPREF))
    (folder / "prompts.txt").write_text("What is this?\nDescribe the scene.\nWhat is on the desk?")
    return files
