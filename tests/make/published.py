"""Tiny stand-ins for published data sets: their headers, and rows of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image


def pictures(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 7 % 256, 40, 90)).save(root / name, "PNG")
    return root


def written(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def said(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]


def llava_150k(home: Path) -> Path:
    """Three kinds of rows about an image have its number as their id; images lie in coco/train2017."""
    pictures(home / "train2017", *(f"{n:012}.jpg" for n in range(1, 7)))
    talk = said("<image>\nWhat is on the table?", "A red mug.", "And beside it?", "A spoon.")
    told = said("Describe it in detail.\n<image>", "A red mug and a spoon lie on a table.")
    rows = [(1, talk), (1, told), *((n, said("<image>\nWhat is this?", f"Thing {n}.")) for n in range(2, 8))]
    rows = [{"id": f"{n:012}", "image": f"{n:012}.jpg", "conversations": turns} for n, turns in rows]
    return written(home / "llava_instruct_150k.json", rows)


def llava_mix(home: Path) -> Path:
    """The mix of 665k: images of several data sets in folders, short questions of VQA, and rows of text alone."""
    pictures(home / "data", "coco/train2017/000000000001.jpg", "gqa/images/17.jpg", "vg/VG_100K/9.jpg")
    short = "<image>\nWhat is it?\nAnswer the question using a single word or phrase."
    mug, dog = said(short, "Mug", "Is it red?", "Yes"), said("<image>\nIs there a dog?", "No")
    cup = said("<image>\nWhere is the cup?", "[0.1, 0.2, 0.3, 0.4]")
    rows = [
        {"id": "000000000001", "image": "coco/train2017/000000000001.jpg", "conversations": mug},
        {"id": 17, "image": "gqa/images/17.jpg", "conversations": dog},
        {"id": "VG_9", "image": "vg/VG_100K/9.jpg", "conversations": cup},
        {"id": "abc_0", "conversations": said("Write a poem.", "Roses are red.")},
    ]
    return written(home / "llava_v1_5_mix665k.json", rows)


def lrv(home: Path) -> Path:
    pictures(home / "vg", "VG_100K/2392588.jpg", "VG_100K_2/7.jpg", "chart_1.png")
    rows = [
        {"image_id": "2392588", "question": "Is there a kettle?", "answer": "There is none.", "task": "negative"},
        {"image_id": "2392588", "question": "What is on the stove?", "answer": "A pan.", "task": "Object"},
        {"image_id": 7, "question": "What is this?", "answer": "A barn."},
        {"image_id": "chart_1.png", "question": "Which bar is higher?", "answer": "The left one."},
    ]
    return written(home / "filter_cap1.json", rows)


def scigraphqa(home: Path) -> Path:
    """A shard of Parquet, with the columns of SciGraphQA-295K-train."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"1501.0000{n}v1-Figure1-1.png" for n in range(3)]
    pictures(home / "figures", *names)
    pairs = [[f"What does figure {n} show?", f"Loss {n}."] for n in range(3)]
    rows = [
        {
            "image_file": name,
            "id": name[:-4],
            "caption": "Figure 1: loss",
            "conversations": said(pair[0], pair[1], "Why does it fall?", "It learns."),
            "first_mention": "Figure 1 shows",
            "response": "",
            "title": "A title",
            "abstract": "An abstract",
            "q_a_pairs": [pair, ["Why does it fall?", "It learns."]],
        }
        for name, pair in zip(names, pairs, strict=True)
    ]
    path = home / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def coco(home: Path, images: int = 4) -> dict[str, Path]:
    """captions_train2014 and instances_train2014, whose images are listed out of order."""
    names = [f"COCO_train2014_{n:012}.jpg" for n in range(images)]
    pictures(home / "coco", *(f"train2014/{name}" for name in names))
    listed = [{"id": n, "file_name": names[n], "width": 8, "height": 8} for n in reversed(range(images))]
    captions = [
        {"id": 10 * n + k, "image_id": n, "caption": f"Caption {k} of {n}."}
        for n in range(images)
        for k in reversed(range(5))
    ]
    boxes = [{"id": n, "image_id": n // 3, "category_id": 18 if n % 3 else 1, "bbox": [0, 0, 4, 4]} for n in range(6)]
    kinds = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    head = {"info": {"year": 2014}, "licenses": [], "images": listed}
    folder = home / "annotations"
    return {
        "captions": written(folder / "captions_train2014.json", head | {"annotations": captions}),
        "instances": written(folder / "instances_train2014.json", head | {"annotations": boxes, "categories": kinds}),
    }


GRAPHS = {"2350001": ["dog", "dog", "bucket"], "17": ["man", "kite"], "9": ["car"], "2400": ["cat", "sofa"]}


def gqa(home: Path) -> Path:
    """train_sceneGraphs.json; the image 9 is not there."""
    pictures(home / "VisualGenome", "VG_100K/2350001.jpg", "VG_100K_2/17.jpg", "VG_100K/2400.jpg")
    graphs = {
        name: {
            "width": 8,
            "height": 8,
            "objects": {
                f"{name}{n}": {"name": thing, "x": 0, "y": 0, "w": 2, "h": 2, "attributes": [], "relations": []}
                for n, thing in enumerate(things)
            },
        }
        for name, things in GRAPHS.items()
    }
    return written(home / "GQA" / "train_sceneGraphs.json", graphs)


def visual_genome(home: Path) -> Path:
    """scene_graphs.json: a list, whose objects have several names."""
    pictures(home / "VisualGenome", "VG_100K/2350001.jpg", "VG_100K_2/17.jpg", "VG_100K/2400.jpg")
    graphs = [
        {
            "image_id": int(name),
            "objects": [
                {"object_id": n, "names": [thing], "x": 0, "y": 0, "w": 2, "h": 2} for n, thing in enumerate(things)
            ],
            "relationships": [],
        }
        for name, things in GRAPHS.items()
    ]
    return written(home / "VisualGenome" / "scene_graphs.json", graphs)
