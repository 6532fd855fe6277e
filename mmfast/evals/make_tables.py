"""What a user makes once for a benchmark, of data of their own: the functions behind `mmfast eval wordnet`,
`chair-table` and `amber-table`."""

from __future__ import annotations

import json
import lzma
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmfast.evals.coco import READING, READINGS, Vocabulary
from mmfast.files import write_bytes, write_json

PARTS = ("train", "val")
ALIKE = 0.8  # AMBER's own threshold


def wordnet_table(source: str | Path, out: str | Path) -> tuple[int, int]:
    """Nouns and exceptions of a WordNet: the folder of its dictionary (Debian's /usr/share/wordnet, corpora/wordnet of
    nltk's data) or nltk's wordnet.zip. Returns how many of each. So mmfast/evals/text/wordnet_nouns.xz was made."""
    index, exceptions = (_member(Path(source), name) for name in ("index.noun", "noun.exc"))
    nouns = sorted({line.split(" ")[0] for line in index.splitlines() if line and not line.startswith(" ")})
    single = [noun for noun in nouns if "_" not in noun]
    rows = [line.strip() for line in exceptions.splitlines() if line.strip()]
    write_bytes(Path(out), lzma.compress("\n".join([*single, "", *rows, ""]).encode(), preset=9))
    return len(single), len(rows)


def _member(source: Path, name: str) -> str:
    if source.is_dir() and (found := sorted(source.rglob(name))):
        return found[0].read_text()
    if source.is_file() and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as file:
            for inside in file.namelist():
                if inside.rsplit("/")[-1] == name:
                    return file.read(inside).decode()
    raise ValueError(
        f"{source}: no {name} in it; give the folder of a WordNet's dictionary (Debian: package wordnet-base, "
        "/usr/share/wordnet) or nltk's wordnet.zip"
    )


def chair_table(
    annotations: str | Path, synonyms: str | Path, out: str | Path, reading: str = "original"
) -> tuple[int, int]:
    """The objects of each image of COCO 2014: classes of its instances and of its captions, train and val.
    `annotations`: the folder of {captions,instances}_{train,val}2014.json. `reading`: whose way to read the captions
    (original, sima, dgpref, objhal). Returns how many images, and how many objects in all."""
    if reading not in READINGS:
        raise ValueError(f"--reading {reading}: there are {', '.join(READINGS)}")
    vocabulary = Vocabulary(Path(synonyms).read_text(), reading)
    found: dict[int, set[str]] = defaultdict(set)
    for part in PARTS:
        instances = _coco(Path(annotations), f"instances_{part}2014.json")
        names = {each["id"]: each["name"] for each in instances["categories"]}
        if unknown := sorted(set(names.values()) - set(vocabulary.classes)):
            raise ValueError(f"{synonyms} has no line for COCO's category {unknown[0]!r}")
        for each in instances["annotations"]:
            found[each["image_id"]].add(vocabulary.classes[names[each["category_id"]]])
        for each in _coco(Path(annotations), f"captions_{part}2014.json")["annotations"]:
            found[each["image_id"]].update(kind for _, kind in vocabulary.mentions(each["caption"]))
    classes = sorted({kind for kinds in found.values() for kind in kinds})
    places = {kind: str(at) for at, kind in enumerate(classes)}
    rows = [f"{key} {','.join(places[kind] for kind in sorted(found[key]))}" for key in sorted(found)]
    text = "\n".join([READING + reading, ",".join(classes), *rows, ""]).encode()
    write_bytes(Path(out), lzma.compress(text, preset=9) if Path(out).suffix == ".xz" else text)
    return len(found), sum(map(len, found.values()))


def _coco(folder: Path, name: str) -> Any:
    if not (folder / name).is_file():
        raise ValueError(
            f"{folder} has no {name}: fetch annotations_trainval2014.zip from cocodataset.org (CC BY 4.0) and give its "
            "folder of annotations"
        )
    return json.loads((folder / name).read_bytes())


def amber_table(
    relation: str | Path, out: str | Path, model: str = "en_core_web_lg", load: Callable[[str], Any] | None = None
) -> int:
    """Which of AMBER's words are alike by a spaCy model's vectors, as its script asks for each pair.
    `relation`: AMBER's relation.json. `load`: spacy.load. Returns how many pairs are."""
    # AMBER's words, and the model
    near = json.loads(Path(relation).read_bytes())
    vocabulary = sorted({*near, *(word for several in near.values() for word in several)})
    if load is None:
        try:
            import spacy
        except ImportError:
            raise ValueError("amber-table needs spaCy: pip install spacy, and its model en_core_web_lg") from None
        load = spacy.load
    try:
        nlp = load(model)
    except OSError:
        raise ValueError(
            f"spaCy has no model {model}: install it from github.com/explosion/spacy-models; AMBER's own is "
            "en_core_web_lg, others give approximate figures"
        ) from None
    meta = getattr(nlp, "meta", {})
    if not meta.get("vectors", {"keys": 1})["keys"]:
        raise ValueError(f"{model} has no vectors, by which words are alike: AMBER's own model is en_core_web_lg")
    # Each pair once, and each word with itself: one that the model does not know is like nothing
    read = {word: nlp(word) for word in vocabulary}
    alike = [
        [one, other]
        for at, one in enumerate(vocabulary)
        for other in vocabulary[at:]
        if read[one].similarity(read[other]) > ALIKE
    ]
    table = {
        "model": f"{meta['lang']}_{meta['name']}" if meta else model,
        "version": meta.get("version", ""),
        "vectors": meta.get("vectors", {}),
        "threshold": ALIKE,
        "vocabulary": vocabulary,
        "similar_pairs": [pair for pair in alike if pair[0] != pair[1]],
        "self_not_similar": sorted({*vocabulary} - {one for one, other in alike if one == other}),
    }
    write_json(Path(out), table)
    return len(table["similar_pairs"])
