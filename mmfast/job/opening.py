"""A run put together from its config, before any step. Below training nobody else reads the config."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from mmfast.config import Config
from mmfast.data.binding import Stamp, stamp_of
from mmfast.data.build import build, reopen
from mmfast.data.containers.hub import address_of
from mmfast.data.images.processor import ImageProcessor
from mmfast.data.problems import BadRow
from mmfast.data.records import Example
from mmfast.data.settings import DataSettings
from mmfast.data.store import ExampleStore
from mmfast.directory import adapter_directory, directory
from mmfast.families import adapter_for, config_of
from mmfast.families.base import Adapter
from mmfast.job.runtime import Runtime
from mmfast.models.loading import depth_key, load
from mmfast.models.lora import ALL_LINEAR, Lora, settings_of
from mmfast.models.parallelize import make_mesh, parallelize
from mmfast.models.proof import prove
from mmfast.models.scorer import Scorer
from mmfast.models.sharded import draw_lora, load_sharded
from mmfast.models.vision_cache import VisionCache, cache_vision
from mmfast.packing import PlanSettings
from mmfast.packing.build import LoadImages

Shown = tuple[str, Callable[[], bytes]]  # an image's file, and what gives its bytes
NONE: Mapping[str, Shown] = {}


class Model(NamedTuple):
    scorer: Scorer
    load_images: LoadImages  # image ids -> what the family's tower reads, for images in that order


def _under(text: str, key: str) -> str:
    """A message about data.path and data.split, under the names of the keys that were read."""
    return text.replace("data.path", key).replace("data.split", key.replace("path", "split"))


class Job:
    """What a run opens once, each part when it is first asked for, by all ranks alike: examples, policy."""

    def __init__(self, config: Config, runtime: Runtime) -> None:
        self.config, self.runtime, self.seed = config, runtime, config.seed
        self.folder = Path(config.output_dir)
        self.model, self.reference, self.parallel = config.model, config.reference, config.parallel
        self.cache, self.progress = config.cache_dir(), config.log.progress and runtime.main
        self.data = DataSettings.of(config)
        self.eval_data = DataSettings.of(config, held_out=True) if config.data.eval_path else None
        self.pairs, self.gamma = config.objective.kind == "dpo", config.objective.gamma
        self.lora = Lora.of(config)
        self.steps = PlanSettings(
            pairs_per_step=config.train.pairs_per_step,
            tokens_per_pack=config.train.tokens_per_pack,
            seed=config.seed,
            shuffle=config.train.shuffle,
            drop_last=config.train.drop_last,
            whole_step=config.objective.whole_step,
        )
        self.of_images = keys_of_images(config)
        # Images beside the data's that the policy is shown, by their ids
        self.more_images: Callable[[], Mapping[str, Shown]] = dict

    # data

    @cached_property
    def store(self) -> ExampleStore:
        return self._examples(self.data, "data.path")

    @cached_property
    def held_out(self) -> ExampleStore | None:
        return self._examples(self.eval_data, "data.eval_path") if self.eval_data else None

    @property
    def stores(self) -> list[ExampleStore]:
        return [self.store, *([self.held_out] if self.held_out else [])]

    def pin(self) -> None:
        """Data sets of a hub at their commits, in the config that is written beside the run; asked by rank 0."""
        data, told = self.config.data, partial(print, file=sys.stderr)
        names = [str(path) for path, _ in self.data.files()]
        if not any(map(address_of, (*names, data.eval_path))):  # of the words alone: all ranks say the same
            return

        def pins(settings: DataSettings, key: str) -> Any:
            try:
                return settings.here(self.cache, told).pinned_path()
            except ValueError as error:
                raise ValueError(_under(str(error), key)) from None

        path = self.runtime.from_main(lambda: pins(self.data, "data.path"))
        if (held_out := self.eval_data) is not None:
            data.eval_path = self.runtime.from_main(lambda: pins(held_out, "data.eval_path"))
        data.path, data.revision = path, ""
        self.data = DataSettings.of(self.config)
        self.eval_data = DataSettings.of(self.config, held_out=True) if self.eval_data else None

    def _examples(self, settings: DataSettings, key: str) -> ExampleStore:
        """Built by rank 0 (or found in the cache) and opened by all as it stands: rank 0 alone looks at the image
        files, and a node's first rank where the node has a disk of its own."""
        runtime = self.runtime
        if not settings.path:
            raise ValueError(f"{key} is empty: name a file of examples")
        self.fetch_models(weights=False)
        store = self._built(settings, key, here=runtime.main)
        place = (store.path, store.roots, store.digest, _stamp(store)) if store else None
        path, roots, digest, stamp = runtime.gather(place)[0]
        if runtime.world > 1:
            own_disk = runtime.local_rank == 0 and stamp_of(str(path / "manifest.json")) != stamp
            mine = self._built(settings, key, here=own_disk)
            other = mine is not None and mine.digest != digest
            runtime.agree(f"{key}: the data or images of a node are not those of rank 0" if other else "")
            store = store or mine or reopen(path, roots, settings)
        assert store is not None
        if self.pairs and not store.preference:
            raise ValueError(f'{key} holds examples without a rejected side: objective.kind = "dpo" needs pairs')
        if self.config.objective.compat == "sima":
            return store.with_runner_up()
        return store if self.pairs else store.without_rejected()

    def _built(self, settings: DataSettings, key: str, *, here: bool) -> ExampleStore | None:
        """The store, on the ranks that build or find it; a problem of one is raised on all, under the name of its
        key."""
        store, problem = None, ""
        if here:
            try:
                self._check_model()
                told = partial(print, file=sys.stderr)  # stdout is the command's own: `mmfast plan --json`
                store = build(settings, self.model.path, self.cache, progress=self.progress, report_to=told)
            except (ValueError, OSError) as error:
                problem = _under(str(error) or type(error).__name__, key)
        self.runtime.agree(problem)
        return store

    def _check_model(self) -> None:
        """Keys that need images, for a model that reads none; an initial adapter that cannot be trained; LoRA targets
        that the model does not have (on its shapes alone)."""
        if self.model.adapter:
            settings_of(self.model.adapter)
        if self.lora and self.lora.targets != ALL_LINEAR:
            folder = str(directory(self.model.path))
            load(folder, freeze=self.model.freeze, lora=self.lora, device="meta", random_weights=True)
        if self.of_images and self.adapter.image_token_id is None:
            raise ValueError(f"{self.of_images[0]} has no effect: {self.model.path} reads text alone; leave it out")
        if self.model.cache_vision:
            depth_key(self.adapter)

    # models

    @cached_property
    def adapter(self) -> Adapter:
        """The family of the policy."""
        try:
            return adapter_for(config_of(directory(self.model.path)))
        except OSError as error:
            raise ValueError(f"model.path: {error}") from None

    @cached_property
    def policy(self) -> Model:
        return self.open_model()

    def open_model(self, path: str = "") -> Model:
        """The policy (or, frozen, the model of `path`), proved where its family is not known, spread over the ranks;
        and what makes its images, features from disk with model.cache_vision."""
        m, runtime, train = self.model, self.runtime, not path
        self.fetch_models(weights=True)
        freeze = tuple(m.freeze) if train else ("vision", "projector", "language")
        load_images = self._cached_features(path, freeze) if m.cache_vision else self.image_loader()
        lora = self.lora if train else None
        options: dict[str, Any] = {"dtype": m.dtype, "freeze": freeze, "lora": lora, "attention": m.attention}
        mesh = self._mesh()
        adapter, quantize = (m.adapter, m.quantize) if train else ("", "")
        listed = self.adapter if train else adapter_for(config_of(directory(path)))
        if runtime.world > 1 and listed.proven and not (adapter or quantize or m.cache_vision):
            assert mesh is not None
            folder = directory(path or m.path, weights=True)
            scorer = load_sharded(folder, self.parallel, mesh, device=runtime.device, seed=self.seed, **options)
            return Model(scorer, load_images)
        options |= {"adapter": adapter, "quantize": quantize, "cached_vision": m.cache_vision}
        scorer = load(path or m.path, device=runtime.device, **options)
        if lora and not adapter:
            draw_lora(scorer, self.seed)
        if not scorer.adapter.proven:
            why = prove(scorer, self._some_examples(), self.store.images, load_images)
            if why and runtime.main:
                print(f"{scorer.adapter.config.model_type}: prefixes are not shared: {why}", file=sys.stderr)
        return Model(parallelize(scorer, self.parallel, mesh, getattr(torch, m.dtype)), load_images)

    def _some_examples(self) -> list[Example]:
        """The first example with images and the first without, as far as there are any."""
        symbols = self.store.symbols
        shown = np.diff(symbols.image_bounds)[symbols.branch_of[:, 0]] > 0
        return [self.store[int(e)] for e in (*np.flatnonzero(shown)[:1], *np.flatnonzero(~shown)[:1])]

    def _mesh(self) -> DeviceMesh | None:
        if not torch.distributed.is_initialized():
            return None
        return make_mesh(self.parallel, self.runtime.device.type, self.runtime.local_world)

    def fetch_models(self, *, weights: bool) -> None:
        """Every model that the run reads, fetched before any rank reads it: by rank 0, whose commit is everyone's,
        then by the first rank of every other node; the other ranks find it there."""
        runtime = self.runtime
        if not self.model.path:
            raise ValueError("model.path is empty: name a model directory or hub id")
        turns = (runtime.main, runtime.local_rank == 0 and not runtime.main, runtime.local_rank > 0)
        models = {
            "model.path": self.model.path, "model.adapter": self.model.adapter, "reference.model": self.reference.model
        }  # fmt: skip
        for key, model in models.items():
            commit = ""
            for number, mine in enumerate(turns if model else ()):
                problem = ""
                if mine:
                    try:
                        folder_of = adapter_directory if key == "model.adapter" else directory
                        commit = folder_of(model, weights, commit=commit, cached=number == 2).name
                    except ValueError as error:
                        problem = f"{key}: {error}"
                runtime.agree(problem)
                commit = runtime.gather(commit)[0]

    # images

    def image_loader(self, more: Mapping[str, Shown] = NONE) -> LoadImages:
        """Of the stores' images, and of `more`."""
        if self.adapter.image_token_id is None:
            return lambda ids: {}
        m, adapter = self.model, self.adapter
        folder = directory(m.path)
        processor = ImageProcessor.from_model_dir(folder, self.data.aspect, m.min_pixels, m.max_pixels)
        shown = dict(more)
        for store in self.stores:
            shown |= {name: (info.source, partial(store.open_image, name)) for name, info in store.images.items()}

        def pixels(name: str) -> Any:
            source, read = shown[name]
            try:
                return processor.load(read())
            except BadRow as error:
                raise ValueError(f"{source}: {error}") from None

        def load_images(ids: list[str]) -> dict[str, Tensor]:
            return adapter.prepare(processor.collate([pixels(name) for name in ids]))

        return load_images

    def _cached_features(self, other: str, freeze: Sequence[str]) -> VisionCache:
        """Rank 0 encodes what is missing, with the tower; every rank reads it, without. `other`: no policy, which is
        shown the data's images alone."""
        path = other or self.model.path

        def encode() -> str:
            more = {} if other else self.more_images()
            cache = cache_vision(
                path,
                self.cache / "vision",
                [*(name for store in self.stores for name in store.images), *more],
                self.image_loader(more),
                dtype=getattr(torch, self.model.dtype),
                freeze=freeze,
                processing=self.store.manifest["processor"],
                device=self.runtime.device,
            )
            return str(cache.folder)

        folder = self.runtime.from_main(encode)
        return VisionCache(folder, adapter_for(config_of(directory(path))))


def keys_of_images(config: Config) -> list[str]:
    """The keys that are set and mean nothing for a model that reads no images."""
    m, o = config.model, config.optim
    given = {
        "model.cache_vision": m.cache_vision,
        "model.min_pixels": m.min_pixels,
        "model.max_pixels": m.max_pixels,
        'model.freeze = ["projector"]': "projector" in m.freeze,
        "data.aspect": config.data.aspect != "auto",
        "optim.projector_lr": o.projector_lr,
        "optim.vision_lr": o.vision_lr,
    }
    return [key for key, value in given.items() if value]


def _stamp(store: ExampleStore) -> Stamp:
    return stamp_of(str(store.path / "manifest.json"))
