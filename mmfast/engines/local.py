"""The local engine: the packed model answers. Image and prompt are read once for all answers to them.

    Local("runs/base").answer(requests)

A request's answer depends on its key, sample number and seed alone, not on what else is asked, in which order, or how
much memory there is: in fp32, on one machine and thread count. See docs/engines.md.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mmfast.directory import adapter_directory, directory
from mmfast.engines import prefill, row_by_row
from mmfast.engines.base import ABILITIES, Finish, Picture, Reply, Request, refuse
from mmfast.engines.captured import Captured, why_not
from mmfast.engines.constraints import Constraints
from mmfast.engines.decode_attention import LEAST, PAGE, spare
from mmfast.engines.decoding import Answer, Decoding
from mmfast.engines.prefill import Prefilled
from mmfast.engines.prompts import ANSWER, Prompt, Prompts
from mmfast.files import weight_digests
from mmfast.job.runtime import Runtime
from mmfast.models.loading import PARTS, load
from mmfast.models.parallelize import evaluating
from mmfast.models.proof import prove
from mmfast.models.scorer import Scorer
from mmfast.packages import no_bars
from mmfast.packing import build_pack
from mmfast.packing.build import LoadImages

AHEAD = 256  # requests that are read before the first is answered: those of an image are put together
PACK = 4096  # tokens of a prefill, unless one request alone has more
SHARE = 0.4  # of the memory that is free at the start: for keys and values


class Local:
    def __init__(
        self,
        model: str,
        *,
        adapter: str = "",
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        tokens: int = 0,
        template: str = "auto",
        aspect: str = "auto",
        min_pixels: int = 0,
        max_pixels: int = 0,
        scorer: Scorer | None = None,
        runtime: Runtime | None = None,
        features: LoadImages | None = None,
    ) -> None:
        """
        model      a directory or a hub id
        adapter    a directory with a LoRA adapter, and what it has in place of whole modules (a trained projector)
        tokens     of keys and values held at once; 0: as many as fit into a share of the free memory
        scorer     of `model`, already open (inside a training process); adapter and dtype are then its own
        runtime    of that process, where the scorer is spread over ranks: each calls answer() with its own requests, or
                   with none, and reads it to the end
        features   of images by their ids, for a scorer without a tower (model.cache_vision)
        """
        # What cannot run is refused before anything is read
        self.sharded = scorer is not None and any(isinstance(module, FSDPModule) for module in scorer.modules())
        if self.sharded and runtime is None:
            raise ValueError("the scorer is spread over ranks (FSDP2): the local engine needs the run's runtime")
        if scorer is not None and not scorer.tower_loaded and (features is None or not scorer.shared):
            why = "" if scorer.shared else f", and its own generate does not take them ({scorer.why_unshared})"
            raise ValueError(f"the scorer reads cached vision features (model.cache_vision){why}: it sees no pictures")
        if tokens < 0:
            raise ValueError(f"tokens = {tokens}: it must be above 0, or 0 for what the free memory holds")
        # The model, how prompts are made for it, and what its answers end with
        self.model, self.adapter, self.runtime = model, adapter, runtime if self.sharded else None
        self.live = scorer is not None
        with no_bars():
            self.scorer = scorer or load(
                model, dtype=dtype, freeze=PARTS, adapter=adapter, replacing=True, device=device
            )
        if not self.live:
            self.scorer.requires_grad_(False)
            self.scorer.eval()
        images = {"aspect": aspect, "min_pixels": min_pixels, "max_pixels": max_pixels, "features": features}
        self.prompts = Prompts(model, self.scorer.adapter, template=template, **images)  # type: ignore[arg-type]
        self.can = frozenset(ABILITIES) - (set() if self.prompts.processor else {"images"})
        self.ends = self._ends()
        self.constraints = Constraints(self.prompts.tokenizer.hf, self.ends, self._vocabulary())
        # What it may hold, and what must be known before the first answer
        self.tokens = tokens or affordable_tokens(self.scorer)
        self.proved = self.live or self.scorer.adapter.proven
        self.captured: Captured | None = None
        self.steady = rows_are_independent(self.scorer)
        if not self.steady:
            told = "a row's numbers depend on what runs beside it here: answers may differ where two tokens nearly tie"
            print(f"{model}: {told}", file=sys.stderr)
        self.counts: dict[str, int] = {}  # of the last answer(): steps, rows, spare rows, prefilled tokens

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, by name."""
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        prompts = self.prompts
        folder = directory(self.model, weights=True)
        return {
            "engine": "local",
            "weights": "of a running process" if self.live else weight_digests(folder),
            "adapter": weight_digests(adapter_directory(self.adapter, weights=True)) if self.adapter else {},
            "dtype": str(self.scorer.dtype).removeprefix("torch."),
            "template": prompts.template.key,
            "tokenizer": prompts.tokenizer.digest,
            "processor": prompts.processor.digest() if prompts.processor else "",
        }

    def answer(self, requests: Iterable[Request | Prompt]) -> Iterator[Reply]:
        """Beside requests it takes prompts that are ids already: Prompts.stored makes them of training's examples."""
        self._prove()
        source = self._plans(requests)
        captured = self._captured()
        run = Decoding(self.scorer, self.tokens, len(self.ends), sharded=self.sharded, captured=captured)
        self.counts = run.counts | {"prefilled": 0}
        coming: prefill.Plan | Reply | None = next(source, None)
        while True:
            while isinstance(coming, Reply):
                yield coming
                coming = next(source, None)
            if not self._any(coming is not None or run.busy):
                return
            # What is still to be read, as far as it fits
            run.admit()
            ready = coming if coming is not None and run.has_room(self._takes(coming)) else None
            if self._any(ready is not None):
                yield from self._begin(ready, run)
                coming = next(source, None) if ready is not None else coming
                continue
            done: list[Answer] = []
            with self._evaluating():
                while not done:
                    done = self.scorer.inside(run.step)
                    if self.sharded:
                        break
            self.counts |= run.counts
            yield from map(self._reply, done)

    def _captured(self) -> Captured | None:
        """Graphs are kept from one answer() to the next where nobody else can move the weights."""
        if self.captured is None or self.live:
            self.captured = None if why_not(self.scorer, sharded=self.sharded) else Captured(self.scorer)
        return self.captured

    def _evaluating(self) -> AbstractContextManager[None]:
        """Of its own model it is the state all along, and saying so to a thousand modules takes as long as a step."""
        return evaluating(self.scorer) if self.live else torch.no_grad()

    def _any(self, here: bool) -> bool:
        """On any rank, where all must do the same."""
        return any(self.runtime.gather(here)) if self.runtime is not None else here

    # before

    def _plans(self, requests: Iterable[Request | Prompt]) -> Iterator[prefill.Plan | Reply]:
        """Packs to be prefilled, a function of the requests and the budget alone; and what is wrong with a request."""
        source = iter(requests)
        while some := list(islice(source, AHEAD)):
            groups: dict[tuple[str, ...], list[Prompt]] = {}
            for request in some:
                try:
                    prompt = self._read(request)
                    groups.setdefault(prompt.images, []).append(prompt)
                except ValueError as error:
                    yield from _failed(request, error)
            pack: list[Prompt] = []
            size = own = 0
            for prompts in groups.values():
                for prompt in sorted(prompts, key=lambda prompt: prompt.ids):  # what begins alike stands together
                    shared = self.prompts.shared(pack[-1], prompt) if pack and self.scorer.shared else 0
                    more = prompt.slots - shared
                    more += sum(map(len, prompt.labels.values()))
                    most = max(own, self._reserve(prompt))
                    if pack and (size + more > PACK or self._needs(size + more, len(pack) + 1) + most > self.tokens):
                        yield prefill.plan(pack, self.prompts, self.scorer, self.ends[0])
                        pack, size, most = [], 0, self._reserve(prompt)
                        more = prompt.slots + sum(map(len, prompt.labels.values()))
                    pack.append(prompt)
                    size, own = size + more, most
            if pack:
                yield prefill.plan(pack, self.prompts, self.scorer, self.ends[0])

    def _read(self, request: Request | Prompt) -> Prompt:
        prompt = request if isinstance(request, Prompt) else self._of_request(request)
        need = self._needs(prompt.slots + sum(map(len, prompt.labels.values())), 1) + self._reserve(prompt)
        if need > self.tokens:
            raise ValueError(f"it needs {need} tokens of keys and values, the budget is {self.tokens}: raise `tokens`")
        return prompt

    def _of_request(self, request: Request) -> Prompt:
        if why := refuse(self, request) or self.constraints.why_not(request.constraint):
            raise ValueError(why)
        if request.constraint and request.decode.beams > 1:
            raise ValueError("a constraint is followed by sampling or greedy decoding, not by beams")
        prompt = self.prompts.read(request)
        if request.constraint:
            self.constraints.make(prompt)  # a regex or a schema that cannot be followed is an error of its row
            longest = max(map(len, prompt.choices), default=0)
            if longest > request.decode.max_tokens:
                raise ValueError(f"a choice has {longest} tokens, max_tokens is {request.decode.max_tokens}")
        return prompt

    def _needs(self, size: int, prompts: int) -> int:
        """The most that a pack of so many tokens takes of the budget."""
        return int(size * 2 ** (1 / prefill.PADDING)) + 1 + 2 * prefill.SHORT * prompts + PAGE

    def _reserve(self, prompt: Prompt) -> int:
        return PAGE * prompt.decode.beams * -(-(self._most(prompt) - 1) // PAGE) if prompt.n else 0

    def _most(self, prompt: Prompt) -> int:
        most, window = prompt.decode.max_tokens, self.prompts.window
        return min(most, window - prompt.slots) if window else most

    def _takes(self, plan: prefill.Plan) -> int:
        """What must be free for a pack, so that one of its answers at least can begin."""
        return plan.tokens + max(map(self._reserve, plan.prompts))

    def _begin(self, plan: prefill.Plan | None, run: Decoding) -> Iterator[Reply]:
        """Prefill: replies that are labels alone; the others' answers begin. Without a plan this rank keeps the others
        company."""
        if not self.scorer.shared:
            yield from self._in_turns(plan)
            return
        # What cannot be loaded is told before the forward, which other ranks enter too
        images: dict[str, Tensor] = {}
        if plan is not None:
            plan, images, failed = self._loaded(plan)
            yield from failed
        with self._evaluating():
            if plan is None:
                if self.sharded:
                    nothing = build_pack([], {}, self.scorer.adapter.layout()).to(self.scorer.device)
                    self.scorer.inside(lambda: self.scorer.hidden_states(nothing))
                return
            found = self.scorer.inside(lambda: prefill.run(plan, images, self.scorer))
        self.counts["prefilled"] += len(plan.pack.tokens)
        for one in found:
            if not one.prompt.n:
                yield _read(one)
            run.waiting.extend(self._answer(one, sample) for sample in range(one.prompt.n))

    def _loaded(self, plan: prefill.Plan) -> tuple[prefill.Plan | None, dict[str, Tensor], list[Reply]]:
        """(The plan of the prompts whose pictures can be loaded, these, the replies of the other prompts.)"""
        try:
            return plan, self.prompts.load_images(plan.pictures), []
        except (ValueError, OSError):
            good, failed = [], []
        for prompt in plan.prompts:
            try:
                self.prompts.load_images(prompt.pictures)
                good.append(prompt)
            except (ValueError, OSError) as error:
                failed += _failed(prompt, error)
        rest = prefill.plan(good, self.prompts, self.scorer, self.ends[0]) if good else None
        return rest, self.prompts.load_images(rest.pictures) if rest else {}, failed

    def _in_turns(self, plan: prefill.Plan | None) -> Iterator[Reply]:
        """Of a model that cannot share. Where it is spread over ranks, all of them do each rank's work in turn: in its
        own generate nobody could keep the others company."""
        infos = self.prompts.infos
        mine = plan, {name: infos[name] for name in plan.pack.image_ids} if plan is not None else {}
        for rank, (one, shown) in enumerate(self.runtime.gather(mine) if self.runtime is not None else [mine]):
            infos |= shown
            replies = self._one_by_one(one) if one is not None else []
            if self.runtime is None or rank == self.runtime.rank:
                yield from replies

    def _one_by_one(self, plan: prefill.Plan) -> list[Reply]:
        kept, images, replies = self._loaded(plan)
        if kept is None:
            return replies
        with self._evaluating():
            found = self.scorer.inside(lambda: prefill.run(kept, images, self.scorer))
            self.counts["prefilled"] += len(kept.pack.tokens)
            for one in found:
                if not one.prompt.n:
                    replies.append(_read(one))
                for answer in [self._answer(one, sample) for sample in range(one.prompt.n)]:
                    generate = partial(row_by_row.generate, answer, self.prompts, self.scorer, self.ends)
                    self.scorer.inside(generate)
                    replies.append(self._reply(answer))
        return replies

    def _answer(self, of: Prefilled, sample: int) -> Answer:
        prompt, decode = of.prompt, of.prompt.decode

        def stops(tokens: list[int]) -> Finish | None:
            if tokens[-1] in self.ends:
                return "stop"
            text = self._text(tokens) if decode.stop else ""
            return "stop" if any(stop in text for stop in decode.stop) else None

        answer = Answer(of, sample, self._most(prompt), stops)
        if decode.repetition_penalty != 1:
            answer.shown = prompt.ids
        if prompt.constraint is not None:
            walk = self.constraints.make(prompt)
            answer.allowed, answer.accept = walk.allowed, walk.accept
        return answer

    # after

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self.prompts.tokenizer.hf.decode(tokens, skip_special_tokens=True)
        return text

    def _reply(self, answer: Answer) -> Reply:
        prompt, text = answer.of.prompt, self._text(answer.tokens)
        cuts = [at for stop in prompt.decode.stop if (at := text.find(stop)) >= 0]
        text = text[: min(cuts, default=len(text))]
        return Reply(
            key=prompt.key, sample=answer.sample, text=text.strip() if prompt.trimmed else text,
            tokens=len(answer.tokens), logp=answer.logp, finish=answer.finish, labels=dict(answer.of.labels),
        )  # fmt: skip

    # the model

    def _ends(self) -> list[int]:
        config = getattr(self.scorer.model, "generation_config", None)
        named = getattr(config, "eos_token_id", None)
        named = [] if named is None else [named] if isinstance(named, int) else list(named)
        return list(dict.fromkeys([*named, self.prompts.tokenizer.eos_id]))

    def _vocabulary(self) -> int:
        return int(self.scorer.model.get_output_embeddings().weight.shape[0])

    def _prove(self) -> None:
        """A family that is not listed shows, on a made-up example, whether it may share prefixes."""
        if self.proved:
            return
        noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).save(out, "PNG")
        content: list[dict[str, Any]] = [{"type": "text", "text": "Describe what you see, in a few words."}]
        pictures: tuple[Picture, ...] = ()
        if self.prompts.image_id is not None:
            pictures, content = (Picture("noise.png", out.getvalue()),), [{"type": "image"}, *content]
        trial = Request(
            key="proof", messages=({"role": "user", "content": content},), images=pictures, n=0, labels=("A trial.",)
        )
        prompt = self.prompts.read(trial)
        examples = [prompt.example(ids) for ids in prompt.labels.values()]
        prove(self.scorer, examples, self.prompts.infos, lambda _: self.prompts.load_images(prompt.pictures))
        self.proved = True


def _read(one: Prefilled) -> Reply:
    """Of a request that writes nothing: its labels' log-probs, or those of a finished answer."""
    prompt = one.prompt
    if prompt.scored:
        return Reply(key=prompt.key, tokens=len(prompt.labels[ANSWER]), logp=one.labels[ANSWER])
    return Reply(key=prompt.key, labels=one.labels)


def _failed(asked: Request | Prompt, error: Exception) -> list[Reply]:
    return [Reply(key=asked.key, sample=n, finish="error", error=str(error)) for n in range(max(asked.n, 1))]


@torch.no_grad()
def rows_are_independent(scorer: Scorer) -> bool:
    """Whether a row of a GEMM has the same bits whatever stands beside it, as many as a step runs: tried once for each
    shape of a decode step's weights, in fp32 on a CPU. Elsewhere it is not promised, and not looked at."""
    linears = [m.weight for m in scorer.decoder.modules() if isinstance(m, torch.nn.Linear)]
    weights = {weight.shape: weight for weight in [*linears, scorer.model.get_output_embeddings().weight]}
    if scorer.device.type != "cpu" or scorer.dtype != torch.float32:
        return True
    return all(isinstance(weight, DTensor) or _rows_are_alone(weight) for weight in weights.values())


def _rows_are_alone(weight: Tensor) -> bool:
    rows = torch.randn(67, weight.shape[1], generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.linear(torch.cat([rows, rows[: spare(67)]]), weight)
    counts = {count + spare(count) for count in (*range(1, 3 * LEAST + 1), 33, 64)}
    return all(torch.equal(torch.nn.functional.linear(rows[:n], weight), whole[:n]) for n in counts)


def affordable_tokens(scorer: Scorer) -> int:
    """As many as a share of the free memory holds."""
    config = scorer.adapter.text_config.to_dict()
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    one = 2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * size * scorer.dtype.itemsize
    if scorer.device.type == "cuda":
        free = torch.cuda.mem_get_info(scorer.device)[0]
    else:
        with open("/proc/meminfo") as lines:
            free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return max(int(SHARE * free / one), 4 * PACK)
