import pytest
import torch

from tests.train.tiny import make_model, write_pairs


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(model directory, 24 pairs on 12 pictures)"""
    folder = tmp_path_factory.mktemp("tiny")
    return make_model(folder), write_pairs(folder, 24)


@pytest.fixture
def eager():
    torch.compiler.set_stance("force_eager")  # torchao compiles its step: half a minute on a CPU
    yield
    torch.compiler.set_stance("default")
