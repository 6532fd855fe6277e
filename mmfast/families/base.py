"""What mmfast must know of a model family. One short file a family derives from Adapter.

An adapter holds the config only, no weights, so it travels to the worker processes that make packs. What the data needs
(images and their marks) is read from the class and the model directory's JSON files, before any model is opened; that
half imports neither torch nor transformers.
Letters: F feature rows (one an image slot), D decoder width, V tower width, L deepstack levels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmfast.families.layout import Layout
from mmfast.families.tiny import Chat, Size, Tiny

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

FEATURES, TOWER = "feature_rows", "tower_rows"  # keys of cached vision features in Pack.images
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALVES = (0.5, 0.5, 0.5)  # SigLIP's mean and spread
BILINEAR, BICUBIC = 2, 3  # Pillow's numbers


class TowerSizes(NamedTuple):
    hidden: int
    depth: int
    inner: int  # of the MLP
    pixels: int  # values of one patch


class Adapter:
    proven = True  # the family is held exact by the tests; others prove themselves at load
    positions = "1d"  # or "mrope"
    merge_size = 1  # patches merged along each axis into one image slot
    has_dummy = True  # dummy_images() is known: the tower's blocks can be sharded one by one while they train
    tower_packs = False  # the tower attends within images that lie in one row: sdpa would read the host for each
    longest = 0  # a sequence of more tokens is computed in another way, which a tree has not; 0: of any length alike
    levels = 0  # deepstack: dense addends after the first decoder layers

    why_no_cache = ""  # why no output of the tower stays the same while it is frozen
    tower_depth: tuple[str, str] | None = None  # (sub-config, key) that says how many blocks the tower has

    # modules beside the decoder, by name: what quantisation leaves alone. None: not known, so nothing is quantised
    outside_decoder: tuple[str, ...] | None = ("model.vision_tower", "model.multi_modal_projector")

    published: dict[str, dict[str, Any]] = {}  # noqa: RUF012  # hub ids -> config.json, as far as sizes go

    chat: Chat | None = None  # of the family's tiny models; None: none are drawn

    def __init__(self, config: PretrainedConfig):
        self.config = config
        self.text_config: PretrainedConfig = config.get_text_config()
        self.image_token_id = self.image_id(config.to_dict())

    @classmethod
    def classes(cls) -> tuple[type[PretrainedConfig], type[PreTrainedModel]] | None:
        """The family's own (config, model), which transformers is told of before one is opened; None: it has them."""
        return None

    @classmethod
    def describes(cls, model: dict[str, Any]) -> bool:
        """Does the file tell of this model? A model_type may name several kinds: the others are read as if unlisted."""
        return True

    # images, for the data: `model` is config.json, `processor` preprocessor_config.json

    needs_processor_file = True  # False: what a published model's preprocessor_config.json would say, the family says

    image_aspect = ""  # of data/images/processor.py: square, crop, pad, anyres or native. "": images are not known
    image_mean, image_std, image_resample = CLIP_MEAN, CLIP_STD, BICUBIC  # where the processor names none

    @classmethod
    def image_id(cls, model: dict[str, Any]) -> int | None:
        """The id that stands for an image in token ids."""
        return image_token_id(model)

    @classmethod
    def tower_square(cls, model: dict[str, Any]) -> tuple[int | None, int]:
        """Pixels along the edge of the square that the tower reads (None: not said), and of a patch."""
        vision = model.get("vision_config") or {}
        return vision.get("image_size"), int(vision.get("patch_size", 14))

    @classmethod
    def aspect_of(cls, processor: dict[str, Any]) -> str:
        """What the model's own processor does."""
        return cls.image_aspect

    @classmethod
    def square_slots(cls, model: dict[str, Any], side: int) -> int:
        """Image slots of one square of side * side patches."""
        return side * side

    @classmethod
    def image_text(cls, model: dict[str, Any], image: str, token: Callable[[int], str]) -> tuple[str, str] | None:
        """(what the chat template writes for an image, what the model reads), where a processor rewrites it. `image` is
        the image token, `token` an id's text."""
        return None

    @classmethod
    def tiny(cls, size: Size, tokenizer: PreTrainedTokenizerFast) -> Tiny:
        """A small model for tests and the embedded world. `tokenizer` has the tokens of `chat`."""
        raise NotImplementedError

    # where things are

    def decoder(self, model: PreTrainedModel) -> PreTrainedModel:
        return model.model.language_model

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        layers: Any = self.decoder(model).layers
        return layers

    def vision(self, model: PreTrainedModel) -> list[nn.Module]:
        """The tower(s). Modules of `projector` may lie inside."""
        return [model.model.vision_tower]

    def vision_blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        """The tower's repeated blocks: what is checkpointed, compiled and sharded one by one."""
        raise NotImplementedError

    def projector(self, model: PreTrainedModel) -> list[nn.Module | nn.Parameter]:
        """Between the tower and the decoder: projectors, mergers, the newline embedding."""
        return [model.model.multi_modal_projector]

    def softcap(self) -> float | None:
        return self.text_config.to_dict().get("final_logit_softcapping")

    def rows_a_slot(self) -> float:
        """Rows that run through the tower for each image slot."""
        return self.merge_size**2

    def tower_sizes(self) -> TowerSizes:
        """For the estimate of memory; by the names that CLIP's, SigLIP's and Qwen's towers use."""
        vision = self.config.vision_config.to_dict()
        hidden = vision.get("embed_dim") or vision["hidden_size"]  # Qwen2-VL's `hidden_size` is the decoder's
        patch = vision["patch_size"]
        patch = patch if isinstance(patch, int) else patch[0]
        return TowerSizes(
            hidden=hidden,
            depth=vision.get("depth") or vision["num_hidden_layers"],
            inner=vision.get("intermediate_size") or hidden * vision.get("mlp_ratio", 4),
            pixels=patch**2 * 3 * vision.get("temporal_patch_size", 1),
        )

    # on the host, in a worker

    def prepare(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds the index tensors that the tower needs, so that no step reads the device. Idempotent."""
        return images

    def rows_of(self, images: dict[str, Tensor]) -> list[int]:
        """Feature rows (image slots) of each image."""
        raise NotImplementedError

    def tower_rows_of(self, images: dict[str, Tensor]) -> list[int]:
        """Rows of tower() of each image."""
        raise NotImplementedError

    def layout(self, share: bool = True) -> Layout:
        """What packing must know of the family."""
        return Layout(
            image_token_id=self.image_token_id,
            mrope=self.positions == "mrope",
            merge=self.merge_size,
            share=share,
            longest=self.longest,
        )

    def dummy_images(self) -> dict[str, Tensor]:
        """One smallest image, for a pack without images while the tower trains."""
        raise NotImplementedError

    # a directory as it is published (`mmfast import`); `model` is its config.json

    @classmethod
    def imported_config(cls, source: Path, model: dict[str, Any]) -> dict[str, Any]:
        """config.json as mmfast reads it."""
        return model

    @classmethod
    def imported_name(cls, model: dict[str, Any], key: str) -> str:
        """What a stored tensor is called from now on; "": it is left out, and that is said."""
        return key

    @classmethod
    def write_imported(cls, source: Path, out: Path, model: dict[str, Any]) -> None:
        """The tokenizer's and processor's files that the directory lacks; the others are copied before."""

    # the layout that the family had before transformers knew it

    def original_name(self, name: str) -> str:
        """What it calls a parameter of ours."""
        return name

    def original_config(self, aspect: str) -> dict[str, Any]:
        """Its config.json. Raises where the layout is not known, or has no place for this model."""
        raise ValueError(
            f'export.formats: "llava" is the native layout of LLaVA-1.5 only, and this is a {self.config.model_type}: '
            'use "peft", or "hf" with export.merge = true'
        )

    # on the device

    def tower(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        """Pixels -> rows that only depend on the tower's weights, in image order."""
        raise NotImplementedError

    def project(self, model: PreTrainedModel, rows: Tensor, images: dict[str, Tensor]) -> Tensor:
        """Tower rows -> [F, (1+L)*D]: the feature rows, then each level's."""
        raise NotImplementedError

    def encode_pixels(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        return self.project(model, self.tower(model, images), images)

    def encode(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        """The images of a pack -> [F, (1+L)*D], from the cache where the pack brings cached rows."""
        if FEATURES in images:
            return images[FEATURES]
        if TOWER in images:
            return self.project(model, images[TOWER], images)
        return self.encode_pixels(model, images)

    def plain_inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        """What the unpatched model's forward needs beside the ids [1,L] and the images."""
        return {}

    def images_in(self, tokens: Tensor) -> Tensor:
        """1 where an image stands, else 0."""
        assert self.image_token_id is not None
        return tokens.eq(self.image_token_id).int()


def image_token_id(model: dict[str, Any]) -> int | None:
    """The id that stands for an image in token ids, from config.json; None for text-only models. LLaVA's and Gemma's
    configs write the older name."""
    ids = (model.get(key) for key in ("image_token_id", "image_token_index"))
    return next((i for i in ids if isinstance(i, int)), None)
