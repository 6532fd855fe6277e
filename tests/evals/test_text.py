"""Words without a download: nltk's tokens, WordNet's singulars, and those of two packages that need not be here."""

import json
import zipfile

import pytest

from mmfast.evals.coco import Vocabulary
from mmfast.evals.make_tables import wordnet_table
from mmfast.evals.text import SHORT_FORMS, words
from mmfast.evals.text.lemmas import ENDINGS, HERE, WORDNET, singular, wordnet
from tests.make.marking import GOLDEN

pytest.importorskip("nltk")


def test_tokens_are_those_that_an_official_script_had():
    """SIMA's ran on nltk's word_tokenize with its whole model, and on its lemmatiser."""
    vocabulary = Vocabulary((GOLDEN / "chair" / "synonyms.txt").read_text(), "sima")
    for sentence in json.loads((GOLDEN / "chair" / "expected_sima.json").read_text())["sentences"]:
        ours = vocabulary.join([wordnet(word) for word in words(sentence["caption"].lower())])
        assert ours == sentence["words"]


def test_a_sentence_ends_before_its_full_stop_is_cut_off():
    assert words("A dog. A cat sits, e.g. on Mr. Poe's mat... It isn't 3.5 m.") == [
        *[
            "A",
            "dog",
            ".",
            "A",
            "cat",
            "sits",
            ",",
            "e.g",
            ".",
            "on",
            "Mr.",
            "Poe",
            "'s",
            "mat",
            "...",
            "It",
            "is",
            "n't",
        ],
        *["3.5", "m", "."],
    ]
    assert words("") == [] and words("\n ") == []


def test_no_short_form_names_an_object():
    """What Punkt has learnt beside its short forms decides only of breaks after these, numbers and initials."""
    tables = json.loads((HERE / "singular.json").read_text())
    known = {word for table in tables.values() for pair in table.items() for word in pair}
    relation = json.loads((GOLDEN / "amber" / "similarity_standin_glove50_0.8.json").read_text())["vocabulary"]
    assert not (set(SHORT_FORMS.split()) & (known | set(relation)))


@pytest.mark.parametrize(
    "word, lemma",
    [
        *[("dogs", "dog"), ("glasses", "glass"), ("knives", "knife"), ("men", "men"), ("people", "people")],
        *[("bus", "bus"), ("buses", "bus"), ("geese", "goose"), ("has", "ha"), ("passes", "pass"), ("pass", "pas")],
        *[("less", "less"), ("us", "u"), ("boxes", "box"), ("ponies", "pony"), ("skis", "ski"), ("snowmen", "snowman")],
        *[("People", "People"), ("qwertys", "qwertys"), ("", ""), ("s", "s"), ("policemen", "policeman")],
    ],
)
def test_wordnets_singulars_are_nltks(word, lemma):
    assert wordnet(word) == lemma


def test_singulars_of_the_other_two_have_their_defects():
    plurals = ("bus", "tie", "buses", "puppies", "glass", "qwertys")
    found = {way: [singular(word, way) for word in plurals] for way in ("pattern", "inflect")}
    assert found["pattern"] == ["bu", "tie", "bus", "puppy", "glas", "qwertys"]
    assert found["inflect"] == ["bu", "tie", "bus", "puppy", "glass", "qwertys"]


def test_the_file_of_nouns_is_made_of_a_dictionary_or_a_zip(tmp_path):
    folder = tmp_path / "dict"
    folder.mkdir()
    (folder / "index.noun").write_text("  1 a licence\nant n 1 0\nant_hill n 1 0\nbee n 1 0\n")
    (folder / "noun.exc").write_text("beez bee\n")
    assert wordnet_table(folder, tmp_path / "a.xz") == (2, 1)
    with zipfile.ZipFile(tmp_path / "wordnet.zip", "w") as file:
        for path in folder.iterdir():
            file.write(path, f"wordnet/{path.name}")
    wordnet_table(tmp_path / "wordnet.zip", tmp_path / "b.xz")
    assert (tmp_path / "a.xz").read_bytes() == (tmp_path / "b.xz").read_bytes()
    for wrong in (tmp_path / "a.xz", tmp_path / "nothing", tmp_path):
        (folder / "index.noun").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=r"no index\.noun in it.*wordnet-base"):
            wordnet_table(wrong, tmp_path / "c.xz")


def test_the_data_that_is_shipped_has_its_licence_beside_it():
    text = (WORDNET.parent / "WORDNET_LICENSE").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text and "without fee or" in text
    assert len(ENDINGS) == 9
