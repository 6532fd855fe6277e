"""The plain engine: transformers' own generate and forward, one row at a time, for any model of images and text.

    for reply in Plain("MODEL").answer(requests): ...

It is the slow twin of the local engine, and runs models that cannot be packed: encoder-decoders, models with code of
their own. Every setting of generate is said at each call, and a model's own generation_config is emptied at load, but
for the tokens that end an answer: a temperature without do_sample would stay greedy, and top_k = 50 would cut unseen.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfast.data.problems import BadRow
from mmfast.directory import adapter_directory, directory
from mmfast.directory.native import note_of
from mmfast.engines.base import Decode, Reply, Request, canonical, refuse
from mmfast.engines.plain_prompts import Processed, Prompt, Prompts, Rendered, encodes
from mmfast.families import config_of, family_of, model_class, reads_images
from mmfast.files import weight_digests
from mmfast.models.float32 import keep_float32
from mmfast.models.loading import from_files
from mmfast.packages import no_bars


class Plain:
    def __init__(
        self,
        model: str | Path,
        *,
        adapter: str = "",
        dtype: str = "float32",
        template: str = "auto",
        remote_code: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        """
        model        a folder or hub id of any family that transformers reads
        adapter      a folder of peft's layout that lies on it
        template     the model's own ("auto") or a named one, as in training
        remote_code  run the code that a model brings along
        """
        from transformers import AutoConfig

        # Read
        self.folder = directory(model, weights=True)
        self.adapter, self.dtype, self.device = adapter, dtype, torch.device(device)
        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=remote_code) if remote_code else None
        config = config or _without_own_code(self.folder)
        keep_float32(getattr(torch, dtype))
        options = {"dtype": getattr(torch, dtype), "output_loading_info": True}
        if note_of(self.folder) is None:
            options |= {"trust_remote_code": remote_code, "use_safetensors": True}
        with no_bars():
            made = from_files(_class_of(config, remote_code), self.folder, config=config, **options)
        self.model: Any = made[0]
        if missing := sorted(made[1]["missing_keys"]):  # they would be drawn at random
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{model} has no weights of {missing[0]}{more}")
        self.ends = _ends(self.model)
        self.prompts = _prompts(self.folder, template, self.model, remote_code)
        if self.prompts.tokenizer.eos_token_id is not None:
            self.ends |= {self.prompts.tokenizer.eos_token_id}
        _empty_defaults(self.model)
        # Adapt
        self.base = self.model
        if adapter:
            from peft import PeftModel

            try:
                self.model = PeftModel.from_pretrained(self.model, str(adapter_directory(adapter, weights=True)))
            except (ValueError, OSError, RuntimeError) as error:
                cause = str(error).strip().split("\n")[0]
                raise ValueError(f"{adapter} is no adapter of {model}: {cause}") from None
        self.model = self.model.to(self.device).eval()
        # What it can do
        can = {"sample", "repetition_penalty", "beams", "stop", "labels", "score", "logp"}
        can |= {"prefix"} if self.prompts.continues else set()
        can |= {"images"} if reads_images(config) or remote_code else set()
        self.can = frozenset(can)

    def identity(self) -> dict[str, Any]:
        import transformers

        adapter = weight_digests(adapter_directory(self.adapter, weights=True)) if self.adapter else {}
        return {
            "engine": "plain",
            "weights": weight_digests(self.folder),
            "adapter": adapter,
            "dtype": self.dtype,
            **self.prompts.identity(),
            "transformers": transformers.__version__,
        }

    def answer(self, requests: Iterable[Request]) -> Iterator[Reply]:
        for request in requests:
            try:
                if why := refuse(self, request):
                    raise BadRow("ability", why)
                yield from self._answers(request)
            except (ValueError, OSError) as error:
                for sample in range(max(request.n, 1)):
                    yield Reply(key=request.key, sample=sample, finish="error", error=str(error))

    def _answers(self, request: Request) -> list[Reply]:
        """All replies of a request, or none: an error is of the request as a whole."""
        window = getattr(self.base.config.get_text_config(), "max_position_embeddings", None) or 0
        if request.scored:
            prompt, ids = self.prompts.answer(request)
            if window and (length := len(prompt.ids) + len(ids)) > window:
                raise BadRow("too-long", f"prompt and answer: {length} tokens, the model's window is {window}")
            return [Reply(key=request.key, tokens=len(ids), logp=self._continuation(prompt, ids))]
        prompt = self.prompts.prompt(request)
        room = window - len(prompt.ids) if window else request.decode.max_tokens
        if room < 1:
            raise BadRow("too-long", f"the prompt has {len(prompt.ids)} tokens, and the model's window is {window}")
        labels = {}
        for label in request.labels:
            ids = self.prompts.label(request, prompt, label)
            labels[label] = self._continuation(prompt, ids)
        if request.n == 0:
            return [Reply(key=request.key, labels=labels)]
        return [self._answer(request, prompt, sample, room, labels) for sample in range(request.n)]

    @torch.no_grad()
    def _continuation(self, prompt: Prompt, ids: Sequence[int]) -> float:
        """log P(ids | prompt) by one plain forward."""
        inputs = self._to_device(self.prompts.inputs(prompt, [*prompt.ids, *ids]))
        logits = self.model(**inputs, use_cache=False).logits[0]
        first = len(logits) - len(ids) - 1  # an encoder-decoder's logits are of the answer alone
        logps = logits[first:-1].float().log_softmax(-1)
        return float(logps.gather(1, torch.tensor(ids, device=logits.device)[:, None]).double().sum())

    @torch.no_grad()
    def _answer(self, request: Request, prompt: Prompt, sample: int, room: int, labels: dict[str, float]) -> Reply:
        decode = request.decode
        inputs = self._to_device(self.prompts.inputs(prompt, prompt.ids))
        # Of one seed, whatever ran before
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices) if decode.temperature else nullcontext():
            if decode.temperature:
                torch.manual_seed(seed_of(request.key, sample, decode.seed))
            out = self.model.generate(
                **inputs,
                generation_config=settings(decode, self.ends, min(decode.max_tokens, room), self._pad),
                stopping_criteria=[self._stops(decode.stop, prompt)] if decode.stop else None,
            )
        ids, logp = generated(out, self._begin(prompt))
        text, stopped = cut(self.prompts.tokenizer.decode(ids, skip_special_tokens=True), decode.stop)
        ended = stopped or ids[-1] in self.ends
        return Reply(
            key=request.key,
            sample=sample,
            text=text if request.messages[-1]["role"] == "assistant" else text.strip(),  # the template sets blanks
            tokens=len(ids),
            logp=logp,
            finish="stop" if ended else "length",
            labels=labels,
        )

    @property
    def _pad(self) -> int:
        pad = self.prompts.tokenizer.pad_token_id
        return min(self.ends) if pad is None else pad

    def _begin(self, prompt: Prompt) -> int:
        """Where in a returned sequence the answer starts."""
        return len(prompt.ids) if getattr(self.prompts, "starts", None) is None else 1

    def _to_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = getattr(torch, self.dtype)
        return {n: t.to(self.device, dtype if t.is_floating_point() else None) for n, t in inputs.items()}

    def _stops(self, stop: tuple[str, ...], prompt: Prompt) -> Any:
        """Ends a row whose own text holds a stop string; the prompt's does not count."""
        from transformers import StoppingCriteria

        begin, tokenizer = self._begin(prompt), self.prompts.tokenizer

        class Stops(StoppingCriteria):
            def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
                texts = [tokenizer.decode(row[begin:], skip_special_tokens=True) for row in input_ids]
                return torch.tensor([any(s in text for s in stop) for text in texts], device=input_ids.device)

        return Stops()


def settings(decode: Decode, ends: set[int], max_tokens: int, pad: int) -> Any:
    """A Decode in full by generate's names."""
    from transformers import GenerationConfig

    drawn = {}
    if decode.temperature:
        drawn = {"temperature": decode.temperature, "top_p": decode.top_p, "top_k": decode.top_k, "min_p": decode.min_p}
    return GenerationConfig(
        do_sample=decode.temperature > 0,
        **drawn,
        repetition_penalty=decode.repetition_penalty,
        num_beams=decode.beams,
        length_penalty=decode.length_penalty,
        early_stopping=False,
        num_return_sequences=1,
        max_new_tokens=max_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_logits=True,
        use_cache=True,
    )


def generated(out: Any, begin: int) -> tuple[list[int], float]:
    """(The tokens of the best answer, their log-prob at temperature 1) of generate's result with its raw logits."""
    steps, beams = len(out.logits), getattr(out, "beam_indices", None)
    rows = [0] * steps if beams is None else [row for row in beams[0].tolist() if row >= 0]  # it may end before others
    ids = out.sequences[0, begin : begin + len(rows)].tolist()
    each = zip(out.logits, rows, ids, strict=False)
    return ids, sum(float(logits[row].float().log_softmax(-1)[token]) for logits, row, token in each)


def seed_of(key: str, sample: int, seed: int) -> int:
    """Each sample of each request has its own numbers."""
    return int.from_bytes(hashlib.sha256(canonical([key, sample, seed]).encode()).digest()[:8], "big") >> 1


def cut(text: str, stop: Iterable[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there was one."""
    places = [place for s in stop if (place := text.find(s)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _without_own_code(folder: Path) -> Any:
    if "auto_map" in json.loads((folder / "config.json").read_text()):
        raise ValueError(f"{folder} brings code of its own: remote_code = True runs it, once you trust it")
    return config_of(folder)


def _class_of(config: Any, remote_code: bool) -> Any:
    """The auto class that a model's own code registers itself with; else the one that transformers knows it under."""
    import transformers

    registered = (getattr(config, "auto_map", None) or {}) if remote_code else {}
    for name in ("AutoModelForImageTextToText", "AutoModelForCausalLM"):
        if name in registered:
            return getattr(transformers, name)
    return model_class(config)


def _prompts(folder: Path, template: str, model: Any, remote_code: bool) -> Prompts:
    """As training renders, where it can; else by the processor alone."""
    forward, described = type(model).forward, family_of(model.config.model_type) is not None
    if encodes(model):
        why = "it is an encoder-decoder"
    elif remote_code:
        why = "its code is its own"
    elif "qformer_input_ids" in inspect.signature(forward).parameters:
        why = "it reads the prompt twice"
    else:
        try:
            rendered = Rendered(folder, template, model.config, forward)
            rendered.identity()  # asks a processor that is made on first use
            return rendered
        except ValueError as error:
            if described:
                raise
            why = str(error)
    if template != "auto":
        raise ValueError(f"template = {template!r} cannot be used with {folder}: {why}")
    return Processed(folder, model, remote_code, why)


def _ends(model: Any) -> set[int]:
    """The tokens that end an answer: the model's own, of its format rather than of its taste."""
    found: set[int] = set()
    for config in (model.generation_config, model.config.get_text_config(), model.config):
        ends = getattr(config, "eos_token_id", None)
        if ends is not None and not found:
            found = {*ends} if isinstance(ends, list | tuple) else {ends}
    return found


def _empty_defaults(model: Any) -> None:
    """No taste of a generation_config.json reaches an answer; BLIP-2 keeps another one in its language model."""
    from transformers import GenerationConfig

    for module in model.modules():
        if (old := getattr(module, "generation_config", None)) is not None:
            kept = {name: getattr(old, name, None) for name in ("bos_token_id", "decoder_start_token_id")}
            module.generation_config = GenerationConfig(**{k: v for k, v in kept.items() if v is not None})
