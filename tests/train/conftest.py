import pytest

from tests.train.tiny import make_model, write_pairs


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(model directory, 24 pairs on 12 pictures)"""
    folder = tmp_path_factory.mktemp("tiny")
    return make_model(folder), write_pairs(folder, 24)


@pytest.fixture
def one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
