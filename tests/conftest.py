import json
import os
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmfast

if folder := os.environ.get("MMFAST_NATIVE_DIR"):  # another build of the native module: `make sanitize`
    mmfast.__path__.insert(0, folder)


def pytest_configure(config: pytest.Config) -> None:
    """The everyday suite is of the CPU on every machine: two ranks need no two GPUs, and forked processes none of their
    parent's CUDA. Only `-m gpu` sees a GPU."""
    markers = config.option.markexpr
    if "gpu" not in markers or "not gpu" in markers:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of the processes that tests start too
        assert not torch.cuda.is_available(), "a plugin of pytest has used the GPU before it could be hidden"
    if not torch.cuda.is_available():  # Triton's kernels run in its interpreter: asked for before it is imported
        assert "triton" not in sys.modules, "triton was imported before pytest was configured"
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        rehearse = os.environ.get("MMFAST_REHEARSE") == "1"
        for item in items:
            marker = item.get_closest_marker("gpu")
            if marker and not (rehearse and "rehearsed" in marker.args):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and -m gpu"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """After pytest's closing line, one that says how many tests were skipped, for want of what."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):  # a worker's tests are counted where they are told
        return
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", ()))
    if reasons:
        listed = "; ".join(f"{n} {reason}" for reason, n in reasons.most_common())
        reporter.write_line(f"{reasons.total()} skipped: {listed}")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(model directory, 24 pairs on 12 pictures)"""
    from tests.make.tiny_run import make_model, write_pairs

    folder = tmp_path_factory.mktemp("tiny")
    return make_model(folder), write_pairs(folder, 24)


@pytest.fixture
def eager():
    torch.compiler.set_stance("force_eager")  # torchao compiles its step: half a minute on a CPU
    yield
    torch.compiler.set_stance("default")


@pytest.fixture(scope="session")
def llava_dir(tmp_path_factory):
    from tests.make.model_directories import write_llava

    path = tmp_path_factory.mktemp("llava")
    write_llava(path)
    return path


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory):
    from tests.make.model_directories import write_qwen

    path = tmp_path_factory.mktemp("qwen")
    write_qwen(path)
    return path


@pytest.fixture
def picture(tmp_path):
    """Writes a picture of noise under a name; its content follows from the seed."""

    def make(name: str, seed: int = 0, size: tuple[int, int] = (80, 60)) -> Path:
        pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return make


@pytest.fixture
def rows(tmp_path):
    """Writes rows as a JSONL file and gives its path."""

    def write(name: str, content: list) -> Path:
        path = tmp_path / name
        lines = [r if isinstance(r, str) else json.dumps(r) for r in content]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache of the hub's, and nothing asked yet."""
    from huggingface_hub import constants

    from mmfast.data.containers import hub as hub_module

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_module, "_listed", {})
    return tmp_path / "home"


@pytest.fixture
def serve(home, tmp_path, monkeypatch):
    """serve(files) -> the requests that come: a data set of these files is on the hub meanwhile."""

    from huggingface_hub import constants

    from mmfast.data.containers import hub as hub_module
    from tests.make.hub_server import hub

    @contextmanager
    def serving(files, **given):
        for name, text in files.items():
            (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
            data = text if isinstance(text, bytes) else text.encode()
            (tmp_path / "repo" / name).write_bytes(data)
        with hub(tmp_path / "repo", "datasets", **given) as (environment, asked):
            template = constants.HUGGINGFACE_CO_URL_TEMPLATE
            moved = template.replace(template.partition("/{")[0], environment["HF_ENDPOINT"])
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", moved)
            monkeypatch.setattr(constants, "ENDPOINT", environment["HF_ENDPOINT"])
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            yield asked
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        hub_module._listed.clear()

    return serving
