"""The commands that make a benchmark's tables, as a user types them."""

import json

import pytest
import typer
from typer.testing import CliRunner

from mmfast.cli.eval_tables import register
from mmfast.evals.coco import Vocabulary, object_table
from tests.make.marking import GOLDEN

CHAIR = GOLDEN / "chair"


@pytest.fixture
def run():
    app = typer.Typer()
    register(app)

    def typed(*words):
        done = CliRunner().invoke(app, [str(word) for word in words])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return typed


def test_a_table_of_coco_s_objects(run, tmp_path):
    pytest.importorskip("nltk")
    out = tmp_path / "objects.txt"
    told = run(
        "chair-table",
        CHAIR / "coco_annotations",
        "--synonyms",
        CHAIR / "synonyms.txt",
        "-o",
        out,
        "--reading",
        "objhal",
    )
    assert told == f"{out}: 22 images, 46 objects\n"
    expected = json.loads((CHAIR / "expected_own_synonyms.json").read_text())["objhal"]["table"]
    vocabulary = Vocabulary((CHAIR / "synonyms.txt").read_text(), "objhal")
    assert {k: sorted(v) for k, v in object_table(out.read_bytes(), "t", vocabulary).items()} == expected


def test_a_file_of_nouns(run, tmp_path):
    (tmp_path / "index.noun").write_text("  1 a licence\nant n 1\nant_hill n 1\n")
    (tmp_path / "noun.exc").write_text("oxen ox\n")
    assert run("wordnet", tmp_path, "--out", tmp_path / "nouns.xz").endswith("1 nouns, 1 exceptions\n")


def test_a_model_that_is_not_there_is_named(run, tmp_path):
    (tmp_path / "relation.json").write_text(json.dumps({"dog": ["puppy"]}))
    with pytest.raises(ValueError, match=r"needs spaCy|spaCy has no model no_model"):
        run("amber-table", tmp_path / "relation.json", "--spacy", "no_model", "-o", tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()
