"""The example of docs/packing.md, run as it stands there."""

import re
from pathlib import Path

import numpy as np
import torch

from mmfast.models import adapter_for
from mmfast.packing import Plan, build_pack, response_key
from mmfast.world import models as world
from tests.make.model_cases import everything

PAGE = Path(__file__).parents[2] / "docs" / "packing.md"


def test_the_plain_loop_trains(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(code) == 1 and len(code[0].splitlines()) <= 20
    path = world.tiny_model("llava", tmp_path / "model")
    from transformers import AutoConfig

    adapter = adapter_for(AutoConfig.from_pretrained(path))
    case = everything("llava", adapter)
    branches = [b for e in case.examples for b in (e.chosen, e.rejected)]
    start = world_logps(str(path), case, branches)
    losses: dict[tuple[int, int], float] = {}

    def report(step, loss) -> None:
        losses[step.epoch, step.step] = losses.get((step.epoch, step.step), 0.0) + loss.item()

    names = {
        "report": report,
        "path": str(path),
        "examples": case.examples,
        "images": case.infos,
        "load_images": case.load_images,
        "reference": start,
    }
    exec(compile(code[0], str(PAGE), "exec"), names)
    plan = names["plan"]
    assert isinstance(plan, Plan) and plan.steps_per_epoch == 2
    # at zero margin a pair's loss is ln 2 times its weight
    first = plan.step(0, 0)
    weights = [case.examples[e].weight for e in first.examples]
    assert abs(losses[0, 0] - np.log(2) * sum(weights) / len(weights)) < 1e-4
    assert len(losses) == 6 and losses[2, 0] + losses[2, 1] < 0.8 * (losses[0, 0] + losses[0, 1])


def world_logps(path: str, case, branches) -> dict[str, np.ndarray]:
    """The starting policy's own log-probs."""
    from mmfast.models import load

    scorer = load(path, dtype="float32")
    pack = build_pack(case.examples, case.infos, scorer.adapter.layout(), load_images=case.load_images)
    with torch.no_grad():
        logps = scorer(pack)[pack.index].numpy()
    bounds = pack.responses.tolist()
    found = {key: logps[bounds[i] : bounds[i + 1]] for i, key in enumerate(pack.response_ids)}
    assert found.keys() == {response_key(b) for b in branches}
    return found
