"""The server engine: OpenAI-compatible endpoints, one or many, by the openai client (vLLM, SGLang, transformers serve,
hosted ones).

    engine = Server("http://127.0.0.1:8000", "MODEL")           # or several addresses, joined by commas
    for reply in engine.answer(requests): ...

It asks at its start what the servers honour (server_handshake.py), sends every setting with each call, and emulates or
refuses by name what they pass over. Questions about an image go to one endpoint, whose prefix cache then knows it.
"""

from __future__ import annotations

import asyncio
import hashlib
import queue
import threading
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any, TypeVar

from mmfast.data.problems import BadRow
from mmfast.engines.base import Decode, Finish, Reply, Request, canonical, refuse
from mmfast.engines.server_calls import Endpoint, Refused, ServerFault, Unreachable, Usage
from mmfast.engines.server_handshake import Handshake, common, text_of
from mmfast.engines.server_labels import by_ids, by_prompt, by_top, label_ids
from mmfast.engines.server_wire import CONTINUED, constrained, kind_of, settings, unwrapped, wired

T = TypeVar("T")


class Server:
    def __init__(
        self,
        urls: str | Sequence[str],
        model: str,
        *,
        concurrency: int = 16,
        timeout: float = 300.0,
        retries: int = 4,
        pause: float = 0.5,
        prices: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """
        urls         http://HOST:PORT or https://HOST/v1; several answer for one model
        concurrency  calls at a time to each
        timeout      seconds for an answer; the first may be slow
        retries      tries after the first; `pause` seconds before the second, doubled before each next, with jitter
        prices       of a million tokens read and written, where the server does not tell costs itself
        """
        addresses = [u.strip() for u in urls.split(",")] if isinstance(urls, str) else [*urls]
        if not addresses or not all(addresses):
            raise ServerFault("no address of a server is given")
        if concurrency < 1 or retries < 0 or timeout <= 0:
            raise ServerFault("a server needs concurrency >= 1, retries >= 0 and timeout > 0")
        self.model, self.usage, self.concurrency = model, Usage(), concurrency
        self.endpoints = [
            Endpoint(u, timeout=timeout, retries=retries, pause=pause, prices=prices, usage=self.usage)
            for u in addresses
        ]
        # Calls run on a thread's event loop, so that answers can be taken without one
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        try:
            self.honours = common(self._wait(self._shake_hands()))
        except BaseException:
            self.close()
            raise
        self.can = self.honours.can

    def identity(self) -> dict[str, Any]:
        """The servers' addresses are no part of it, nor is how many requests they take."""
        honours = asdict(self.honours)
        del honours["at_once"]
        return {"engine": "server", "model": self.model, "honours": honours}

    def close(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()

    def answer(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Twice as many requests as calls are under way, so that no endpoint waits for the next."""
        done: queue.Queue[Future[list[Reply]]] = queue.Queue()
        going: set[Future[list[Reply]]] = set()

        def taken(wait: bool) -> Iterator[Reply]:
            future = done.get(block=wait)
            going.discard(future)
            yield from future.result()

        try:
            for request in requests:
                future = asyncio.run_coroutine_threadsafe(self._answered(request), self.loop)
                going.add(future)
                future.add_done_callback(done.put)
                while going and (len(going) >= 2 * self.concurrency * len(self.endpoints) or not done.empty()):
                    yield from taken(wait=True)
            while going:
                yield from taken(wait=True)
        finally:
            for future in going:
                future.cancel()

    # on the loop

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def _shake_hands(self) -> list[Any]:
        found = await asyncio.gather(*(Handshake(endpoint, self.model).run() for endpoint in self.endpoints))
        for endpoint, honours in zip(self.endpoints, found, strict=True):
            endpoint.gate = asyncio.Semaphore(self.concurrency if honours.at_once else 1)
        return [*found]

    async def _answered(self, request: Request) -> list[Reply]:
        """All replies of a request; a fault of its own is in them."""
        try:
            if why := refuse(self, request) or self.honours.ignored(request):
                raise BadRow("ability", why)
            messages = wired(request.messages, request.images)
            while True:
                endpoint = self._endpoint(request)
                try:
                    return await self._replies(endpoint, request, messages)
                except Unreachable:
                    endpoint.down = True
                    if all(one.down for one in self.endpoints):
                        raise
        except (BadRow, OSError, Refused) as error:
            told = str(error)
            return [Reply(key=request.key, sample=i, finish="error", error=told) for i in range(max(request.n, 1))]

    def _endpoint(self, request: Request) -> Endpoint:
        """The one of those still there that its images fall to."""
        about = [picture.id for picture in request.images] or request.key

        def rank(endpoint: Endpoint) -> str:
            return hashlib.sha256(canonical([endpoint.url, about]).encode()).hexdigest()

        return min((one for one in self.endpoints if not one.down), key=rank, default=self.endpoints[0])

    async def _replies(self, endpoint: Endpoint, request: Request, messages: list[Any]) -> list[Reply]:
        labels, bounded = await self._labels(endpoint, request, messages) if request.labels else ({}, ())
        if request.n == 0:
            return [Reply(key=request.key, labels=labels, bounded=bounded)]
        # One call for all samples, or one for each
        whole = request.n > 1 and self.honours.n
        choices: list[tuple[Any, int]] = []
        if whole:
            choices = await self._choices(endpoint, request, messages, 0, request.n)
        missing = range(len(choices), request.n)
        for more in await asyncio.gather(*(self._choices(endpoint, request, messages, i, 1) for i in missing)):
            choices += more
        return [
            self._reply(request, i, choice, tokens, labels, bounded)
            for i, (choice, tokens) in enumerate(choices[: request.n])
        ]

    async def _choices(
        self, endpoint: Endpoint, request: Request, messages: list[Any], sample: int, n: int
    ) -> list[tuple[Any, int]]:
        """Choices, each with its number of tokens."""
        body = self._body(request, messages, sample)
        if n > 1:
            body["n"] = n
        if self.honours.logp:
            body |= {"logprobs": True, "top_logprobs": 0}
        if not self.honours.stop:
            body.pop("stop", None)
        if request.constraint is not None:
            body |= constrained(request.constraint, getattr(self.honours, kind_of(request.constraint)))
        answer = await endpoint.chat(body)
        written = answer.usage.completion_tokens if answer.usage is not None else 0
        found = []
        for choice in answer.choices[:n]:
            shown = getattr(choice.logprobs, "content", None)
            found.append((choice, len(shown) if shown and len(answer.choices) > 1 else written // len(answer.choices)))
        return found

    def _body(self, request: Request, messages: list[Any], sample: int) -> dict[str, Any]:
        seed = _seed(request.key, sample, request.decode.seed)
        said = settings(request.decode, seed, self.honours.form, self.honours.length)
        continued = CONTINUED if request.messages[-1]["role"] == "assistant" else {}
        return {"model": self.model, "messages": messages, **said, **continued}

    def _reply(
        self, request: Request, sample: int, choice: Any, tokens: int, labels: dict[str, float], bounded: Any
    ) -> Reply:
        named = {"key": request.key, "sample": sample, "tokens": tokens, "labels": labels, "bounded": bounded}
        if choice.finish_reason not in ("stop", "length", None):
            return Reply(**named, finish="error", error=f"the server ended the answer: {choice.finish_reason}")
        # A stop string that it does not know is looked for here
        text = text_of(choice)
        places = [place for s in request.decode.stop if (place := text.find(s)) >= 0]
        shown = getattr(choice.logprobs, "content", None) or []
        logp = sum(entry.logprob for entry in shown) if shown and not places else None
        text = unwrapped(text[: min(places)] if places else text, request.constraint, self._spelling(request))
        text = text if request.messages[-1]["role"] == "assistant" else text.strip()  # the template sets blanks
        finish: Finish = "length" if choice.finish_reason == "length" and not places else "stop"
        return Reply(**named, text=text, logp=logp, finish=finish)

    def _spelling(self, request: Request) -> str:
        return "" if request.constraint is None else getattr(self.honours, kind_of(request.constraint))

    async def _labels(
        self, endpoint: Endpoint, request: Request, messages: list[Any]
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        """By the best means that the server honours: (log-probs, the labels that are only bounded)."""
        said = settings(Decode(max_tokens=1), 1, self.honours.form, self.honours.length)
        continued = CONTINUED if request.messages[-1]["role"] == "assistant" else {}
        body = {"model": self.model, "messages": messages, **said, **continued}
        if not (self.honours.token_ids or self.honours.prompt_logprobs):
            values, bounded = await by_top(endpoint, body, request.labels, self.honours.top_logprobs)
            return values, tuple(label for label in request.labels if label in bounded)
        ids = {label: await label_ids(endpoint, body, label) for label in request.labels}
        single = [numbers[0] for numbers in ids.values() if len(numbers) == 1] if self.honours.token_ids else []
        shown = await by_ids(endpoint, body, single) if single else {}
        values = {}
        for label, numbers in ids.items():
            if len(numbers) == 1 and numbers[0] in shown:
                values[label] = shown[numbers[0]]
            elif self.honours.prompt_logprobs:
                values[label] = await by_prompt(endpoint, body, label, numbers)
            else:
                raise Refused(f"the label {label!r} has {len(numbers)} tokens, and this server shows the first one's")
        return values, ()


def _seed(key: str, sample: int, seed: int) -> int:
    """Each sample has its own; 31 bits, which every server takes."""
    return int.from_bytes(hashlib.sha256(canonical([key, sample, seed]).encode()).digest()[:4], "big") >> 1
