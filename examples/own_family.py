"""A model family of your own: one file in a folder mmfast_families on the Python path, named after its model_type.

ViP-LLaVA is LLaVA with several layers of its tower side by side. Its file says what differs, its base says the rest,
and data, packs, trainer and `mmfast plan` read both. mmfast's own tests have not run it, so at load it must prove that
sharing prefixes changes none of its log-probs. What each member means is told in mmfast/families/base.py.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers

from mmfast.config import build
from mmfast.train import train
from mmfast.world import models as world
from mmfast.world.dataset import WorldSpec, write_world

FILE = '''
import torch

from mmfast.families.llava import Llava


class VipLlava(Llava):
    """Several layers of the tower side by side, as the model's configuration names them."""

    def tower(self, model, images):
        states = model.model.vision_tower(images["pixel_values"], output_hidden_states=True).hidden_states
        return torch.cat([states[layer][:, 1:] for layer in self.config.vision_feature_layer], dim=-1)

    def patches(self):
        return (self.config.vision_config.image_size // self.config.vision_config.patch_size) ** 2
'''

folder = Path(tempfile.mkdtemp())
(folder / "mmfast_families").mkdir()
(folder / "mmfast_families" / "vipllava.py").write_text(FILE)
sys.path.append(str(folder))

# A tiny model of the family stands in for yours
llava, tokenizer, images, _ = world.build("llava")
config = transformers.VipLlavaConfig(
    vision_config=llava.config.vision_config,
    text_config=llava.config.text_config,
    image_token_index=llava.config.image_token_index,
    vision_feature_layer=[-1, -2, 1],
)
torch.manual_seed(0)
world.save(folder / "model", transformers.VipLlavaForConditionalGeneration(config), tokenizer, images, None)

write_world(folder, WorldSpec(base=0, pairs=12, groups=0, test=0))
model = {"path": str(folder / "model"), "dtype": "float32"}
data = {"path": str(folder / "pairs.jsonl"), "workers": 0}
steps = {"pairs_per_step": 4, "tokens_per_pack": 512, "steps": 3}
tree = {"output_dir": str(folder / "run"), "model": model, "data": data, "train": steps, "optim": {"lr": 1e-3}}
train(build(tree | {"export": {"formats": []}}))
print((folder / "run" / "metrics.jsonl").read_text())
