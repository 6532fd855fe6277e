"""One call to an OpenAI-compatible endpoint, until it is answered: retries, waits, and what a refusal means.

    Refused      of this request: a setting or an image that the server does not take, or faults at each try
    Unreachable  of this endpoint: nothing listens there any more
    ServerFault  of the engine: a wrong key, a wrong model, no money left; it ends the run in one line

A retry goes out on a connection of its own: a server may close the old one after a fault. Keys come from the
environment and appear in no message.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from mmfast.packages import how_to_install

KEYS = ("MMFAST_API_KEY", "OPENAI_API_KEY")  # the first that is set
AGAIN = (408, 409, 425, 429)  # and whatever is a server's own fault, from 500 on
TOLD = re.compile(  # at the end of a command, where a progress bar has a comma before it
    r"(?:; |: )(\d+) calls(?:, (\d+) tries more)?, (\d+) tokens in, (\d+) out(?:, (\d+\.\d+) paid)?"
)
LONGEST_WAIT = 600.0  # seconds; a server may ask for more


class ServerFault(ValueError):
    pass


class Unreachable(ServerFault):
    pass


class Refused(Exception):
    """`status` is 0 where there was no answer in HTTP's terms."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NotWhole(Exception):
    """An answer that cannot be read, or has no choices."""


@dataclass
class Usage:
    """What a run has asked for and been given. `cost` is as the server says, or by the prices."""

    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def told(self) -> str:
        again = f", {self.retries} tries more" if self.retries else ""
        cost = f", {self.cost:.4f} paid" if self.cost else ""
        return f"{self.calls} calls{again}, {self.prompt_tokens} tokens in, {self.completion_tokens} out{cost}"

    @classmethod
    def said_in(cls, text: str) -> Usage:
        """The sum of what commands told at their ends."""
        found = cls()
        for calls, retries, read, written, cost in TOLD.findall(text):
            found.calls += int(calls)
            found.retries += int(retries or 0)
            found.prompt_tokens += int(read)
            found.completion_tokens += int(written)
            found.cost += float(cost or 0)
        return found


def api_key() -> tuple[str, str]:
    """(The key, the variable that holds it.) Servers on this machine need none."""
    return next(((os.environ[name], name) for name in KEYS if os.environ.get(name)), ("", ""))


class Endpoint:
    def __init__(
        self, url: str, *, timeout: float, retries: int, pause: float, prices: tuple[float, float], usage: Usage
    ) -> None:
        """`pause`: seconds before the first retry, about; it doubles with each. `prices`: of a million tokens read, and
        written. `usage` is counted up."""
        if importlib.util.find_spec("openai") is None:
            raise ServerFault(f"a server is asked through the openai client: {how_to_install('server')}")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ServerFault(f"{url!r} is no address of a server: write http://HOST:PORT or https://HOST/v1")
        self.base = url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self.root = f"{parts.scheme}://{parts.netloc}"
        self.url = self.base.replace(parts.netloc, parts.netloc.rpartition("@")[2])  # as messages name it
        self.timeout, self.retries, self.pause, self.prices, self.usage = timeout, retries, pause, prices, usage
        self.key, self.key_name = api_key()
        self.opens = 0.0  # it asked for quiet until then
        self.down = False
        self.gate = asyncio.Semaphore(1)
        self.client = self._client()

    def _client(self) -> Any:
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=self.base, api_key=self.key or "none", timeout=self.timeout, max_retries=0)

    async def chat(self, body: Mapping[str, Any], *, retries: int | None = None) -> Any:
        """A chat completion that has choices."""
        named = {"model": body["model"], "messages": body["messages"]}
        rest = {name: value for name, value in body.items() if name not in named}

        async def ask(client: Any) -> Any:
            answer = await client.chat.completions.create(**named, extra_body=rest)
            if not getattr(answer, "choices", None):
                raise NotWhole(f"its answer is no chat completion: {_line(answer)}")
            return answer

        answer = await self._until_answered(ask, retries)
        self._count(answer)
        return answer

    async def get(self, path: str) -> Any:
        return await self._until_answered(lambda client: client.get(path, cast_to=object), 1)

    async def post(self, address: str, body: dict[str, Any]) -> Any:
        return await self._until_answered(lambda client: client.post(address, body=body, cast_to=object), 1)

    async def _until_answered(self, ask: Callable[[Any], Any], retries: int | None) -> Any:
        tries = 1 + (self.retries if retries is None else retries)
        for attempt in range(tries):
            await asyncio.sleep(max(0.0, self.opens - time.monotonic()))
            client = self._client() if attempt else self.client
            try:
                async with self.gate:
                    self.usage.calls += 1
                    return await ask(client)
            except Exception as error:
                wait = self._judged(error, last=attempt == tries - 1)
            finally:
                if attempt:
                    await client.close()
            self.usage.retries += 1
            delay = self.pause * 2**attempt * random.uniform(0.5, 1.0)
            if wait:  # the whole endpoint keeps quiet
                self.opens = max(self.opens, time.monotonic() + min(wait, LONGEST_WAIT))
            await asyncio.sleep(delay)
        raise AssertionError("the last try returns or raises")

    def _judged(self, error: Exception, *, last: bool) -> float:
        """Seconds that the server asks to wait; raises where another try is of no use."""
        import openai

        if isinstance(error, openai.APIStatusError):
            status, message = error.status_code, self._message(error)
            if status == 402 or "insufficient_quota" in (error.code, getattr(error, "type", None)):
                raise ServerFault(f"{self.url}: the account has no money left ({message})") from None
            if status == 401:
                told = f"refuses the key in {self.key_name}" if self.key else f"wants a key: set {KEYS[0]}"
                raise ServerFault(f"{self.url} {told} ({message})") from None
            if last or not (status in AGAIN or status >= 500):
                raise Refused(f"{self.url} said {status}: {message}", status) from None
            return wait_of(error.response.headers)
        if isinstance(error, openai.APITimeoutError):
            if last and not _connecting(error):
                raise Refused(f"{self.url} gave no answer in {self.timeout:g} s") from None
        elif not isinstance(
            error, openai.APIConnectionError | openai.APIResponseValidationError | NotWhole | ValueError
        ):
            raise error
        if last and _connecting(error):
            raise Unreachable(f"{self.url} cannot be reached: is the server running there?") from None
        if last:
            raise Refused(f"{self.url}: {self._hidden(_line(error.__cause__ or error))}") from None
        return 0.0

    def _message(self, error: Any) -> str:
        body = error.body if isinstance(error.body, dict) else {}
        return self._hidden(_line(body.get("message") or body.get("detail") or error.message))

    def _hidden(self, text: str) -> str:
        return text.replace(self.key, "(the key)") if self.key else text

    def _count(self, answer: Any) -> None:
        used = answer.usage
        if used is None:
            return
        read, written = used.prompt_tokens or 0, used.completion_tokens or 0
        self.usage.prompt_tokens += read
        self.usage.completion_tokens += written
        said = (used.model_extra or {}).get("cost")
        self.usage.cost += (
            float(said) if said is not None else (read * self.prices[0] + written * self.prices[1]) / 1_000_000
        )


def wait_of(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After asks for: a number, or a date; 0 where there is none."""
    if (milliseconds := headers.get("retry-after-ms", "")).isdigit():
        return int(milliseconds) / 1000
    asked = headers.get("retry-after", "")
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError, IndexError):
        return 0.0


def _connecting(error: Exception) -> bool:
    """Did it fail before there was a connection?"""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
            return True
        cause = cause.__cause__
    return False


def _line(value: Any) -> str:
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= 300 else text[:297] + "..."
