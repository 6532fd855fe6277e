"""A folder of each published system's own files, small: its layout, its fields and its names, with pictures, questions
and answers of the embedded world (whose engine knows the pictures by their bytes, whatever they are called)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmfast.world.dataset import read_lines
from mmfast.world.grammar import CAPTION_PROMPTS

PAPERS = ("sima", "mllm_dpo", "dgpref_llava", "dgpref_qwen", "rlaifv", "rlhfv")
QUESTION = CAPTION_PROMPTS[0]


def write_system(name: str, folder: Path, world: Path) -> dict[str, Path]:
    """The files of a system, as the keys of its recipe name them: prompts.path, prompts.images."""
    pairs = read_lines(world / "pairs.jsonl")
    shown = [
        (world / row["images"][0], row["chosen"][0]["content"][0]["text"], row["rejected"][0]["content"][0]["text"])
        for row in pairs
    ]
    folder.mkdir(parents=True, exist_ok=True)
    return {"sima": sima, "mllm_dpo": mllm_dpo, "rlaifv": rlaifv, "rlhfv": rlhfv}.get(name, dgpref)(folder, shown)


Shown = list[tuple[Path, str, str]]  # a picture, a true caption and a flawed one


def copied(picture: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(picture, to)


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sima(folder: Path, shown: Shown) -> dict[str, Path]:
    """SIMA_prompts: {image, text, ground_truth}; pictures of COCO's train2017."""
    rows = []
    for number, (picture, truth, _) in enumerate(shown):
        image = f"{number:012d}.jpg"
        copied(picture, folder / "coco" / "train2017" / image)
        rows.append({"image": image, "text": QUESTION, "ground_truth": truth})
    found = lines(folder / "sima_prompts.jsonl", rows)
    return {"prompts.path": found, "prompts.images": folder / "coco" / "train2017"}


def mllm_dpo(folder: Path, shown: Shown) -> dict[str, Path]:
    """model_vqa's questions of LRV-Instruct and SciGraphQA, pictures in a folder each."""
    rows = []
    for number, (picture, _, _) in enumerate(shown):
        image = f"lrv_image_folder/{number}.jpg" if number % 2 else f"scigraph/0000.0000{number}v1-Figure1-1.png"
        copied(picture, folder / "playground" / "data" / image)
        rows.append({"question_id": number, "image": image, "text": QUESTION})
    found = lines(folder / "questions.jsonl", rows)
    return {"prompts.path": found, "prompts.images": folder / "playground" / "data"}


def dgpref(folder: Path, shown: Shown) -> dict[str, Path]:
    """GQA's scene graphs, which name the images, and Visual Genome's two folders."""
    graphs = {}
    for number, (picture, _, _) in enumerate(shown):
        name = str(2350000 + number)
        copied(picture, folder / "VisualGenome" / ("VG_100K" if number % 2 else "VG_100K_2") / f"{name}.jpg")
        thing = {"name": "square", "x": 1, "y": 2, "w": 20, "h": 20, "attributes": ["red"], "relations": []}
        graphs[name] = {"width": 84, "height": 84, "objects": {"1": thing}}
    (folder / "GQA").mkdir(exist_ok=True)
    found = folder / "GQA" / "train_sceneGraphs.json"
    found.write_text(json.dumps(graphs))
    return {"prompts.path": found, "prompts.images": folder / "VisualGenome"}


def rlhfv(folder: Path, shown: Shown) -> dict[str, Path]:
    """RLHF-V-Dataset: a parquet with the images inside and the texts as JSON."""
    rows = [
        {
            "ds_name": "world", "image": {"bytes": picture.read_bytes(), "path": f"{number}.jpg"},
            "text": json.dumps({"question": QUESTION, "chosen": truth, "rejected": flawed}),
            "origin_dataset": "world",
            "origin_split": json.dumps({"model": "m", "type": "detailed description"}),
            "idx": number, "image_path": f"{number}.jpg",
        }
        for number, (picture, truth, flawed) in enumerate(shown)
    ]  # fmt: skip
    (folder / "RLHF-V-Dataset").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "RLHF-V-Dataset" / "RLHF-V-Dataset.parquet")
    return {"prompts.path": folder / "RLHF-V-Dataset"}


def rlaifv(folder: Path, shown: Shown) -> dict[str, Path]:
    """RLAIF-V-Dataset: shards, texts in columns of their own."""
    rows = [
        {
            "ds_name": "world", "image": {"bytes": picture.read_bytes(), "path": f"{number}.jpg"}, "question": QUESTION,
            "chosen": truth, "rejected": flawed, "origin_dataset": "world",
            "origin_split": json.dumps({"model": "g", "feedback": "j", "type": "detailed description"}),
            "idx": str(number), "image_path": f"{number}.jpg",
        }
        for number, (picture, truth, flawed) in enumerate(shown)
    ]  # fmt: skip
    (folder / "RLAIF-V-Dataset").mkdir()
    for shard in range(2):
        name = f"RLAIF-V-Dataset_{shard:03}-{len(rows[shard::2])}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[shard::2]), folder / "RLAIF-V-Dataset" / name)
    return {"prompts.path": folder / "RLAIF-V-Dataset"}
