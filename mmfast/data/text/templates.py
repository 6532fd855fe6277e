"""Messages to text: the model's own chat template by default, named ones for the formats of published systems.

A template returns chunks in order; those that are scored hold an answer as it is rendered, end marks included. All
are tokenised as one text. With a `joint` template a token is scored if it ends past the start of the answer, as in its
system; otherwise a response begins where the prompt's own tokens end, so a prompt is a true prefix of its responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mmfast.data.problems import BadRow
from mmfast.data.text.tokens import Tokenizer


@dataclass(frozen=True, slots=True)
class Chunk:
    text: str
    scored: bool
    lead: int = 0  # of a joint template: characters of a scored chunk that stand before the answer itself


@dataclass(frozen=True, slots=True)
class NamedTemplate:
    """A named format with fixed separators. {image} in `image` is the model's image placeholder."""

    system: str
    user: str  # around {text}; the first turn's text has the images in front
    answer: str  # what opens the answer: the generation prompt
    end: str  # what closes it, scored; {eos} is the model's
    between: str = ""  # after a closed answer, unscored
    image: str = "{image}\n"
    system_end: str = " "
    images_first: bool = False  # before the whole user turn instead of inside it
    lead: str = " "  # between the generation prompt and the answer
    joint: bool = True
    mode: str = "legacy"  # the tokenizer's
    # of later templates; not in the repr, which keys of caches are made of
    images_last: bool = field(default=False, repr=False)  # behind the first turn's text
    tight: bool = field(default=False, repr=False)  # no white space beside an image: as slow tokenizers read it
    role_marks: bool = field(default=False, repr=False)  # scored where Muffin's masking lets them through


VICUNA = (
    "A chat between a curious {who} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {who}'s questions."
)

_VICUNA = NamedTemplate(system=VICUNA.format(who="user"), user="USER: {text} ", answer="ASSISTANT:", end="{eos}")
QWEN_2, QWEN_1 = ("<|vision_start|>", "<|vision_end|>"), ("<img>", "</img>")  # around an image; Qwen-VL's in its place
_CHATML = NamedTemplate(
    system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    system_end="",
    user="<|im_start|>user\n{text}<|im_end|>\n",
    answer="<|im_start|>assistant\n",
    end="<|im_end|>\n",
    image="<|vision_start|>{image}<|vision_end|>",
    lead="",
    joint=False,
    mode="",
)

_MUFFIN = NamedTemplate(
    system=VICUNA.format(who="human"),
    system_end="\n\n### ",
    user="Human: {text}\n",
    answer="### Assistant:",
    end="\n### ",
    image="<im_start>{image}<im_end>",
    tight=True,
)

NAMED = {
    # LLaVA-1.5, mllm-dpo and SIMA
    "vicuna_v1": _VICUNA,
    # RLAIF-V on LLaVA-1.5: the same with another word in the system line
    "rlaifv": replace(_VICUNA, system=VICUNA.format(who="human")),
    # LLaVA's first, and Muffin's (RLHF-V) for models without its marks: the stop mark is scored, the two role marks
    # that its masking let through are not
    "llava_v0": replace(_MUFFIN, image="{image}\n", tight=False),
    # Muffin (RLHF-V) as it is trained: its images have marks of their own
    "muffin": _MUFFIN,
    # the same, with the marks of roles that its masking scores besides: they weigh in averages, and in sums cancel
    "muffin_compat": replace(_MUFFIN, role_marks=True),
    # and as it is asked: the image behind the question, and the model writes "Assistant:" itself
    "muffin_ask": replace(_MUFFIN, system_end="\n###", answer="###", lead="", end="\n###", images_last=True),
    "dgpref_llava": NamedTemplate(
        system="", system_end="", user="USER: {text}\n", answer="ASSISTANT:", end="", between="\n", images_first=True
    ),
    "dgpref_qwen": replace(_CHATML, image="Picture {number}: <|vision_start|>{image}<|vision_end|>\n", joint=True),
    "chatml": _CHATML,
}
NAMES = ("auto", *NAMED)


def parts(message: dict) -> list[dict]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def text_of(message: dict) -> str:
    return "".join(p["text"] for p in parts(message) if p["type"] == "text")


def image_count(messages: Sequence[dict]) -> int:
    return sum(p["type"] == "image" for m in messages for p in parts(m))


def user_turn(named: NamedTemplate, images: str, words: str) -> str:
    """A turn of the user, its images where the template has them."""
    if named.images_first:
        return images + named.user.format(text=words)
    turn = named.user.format(text=words + images if named.images_last else images + words)
    if not (named.tight and images):
        return turn
    before, _, after = turn.rpartition(images) if named.images_last else turn.partition(images)
    return f"{before.rstrip()}{images}{after.lstrip()}"


class Template:
    """One named template with one tokenizer: messages to chunks of (masked) text."""

    def __init__(self, name: str, tokenizer: Tokenizer):
        if name not in NAMES:
            raise ValueError(f"data.template: unknown template {name!r}; choose one of {', '.join(NAMES)}")
        self.name, self.named = name, NAMED.get(name)
        if self.named and all(mark in tokenizer.specials for mark in QWEN_1):
            for mark, older in zip(QWEN_2, QWEN_1, strict=True):
                self.named = replace(self.named, image=self.named.image.replace(mark, older))
        self._rendered: tuple[list[dict], str] = ([], "")
        self.tokenizer = tokenizer.in_mode(self.named.mode) if self.named and self.named.mode else tokenizer
        if self.named:
            written = self.named.user + self.named.end + (self.named.image if tokenizer.image_token else "")
            marks = [m for m in ("<|im_start|>", "<|im_end|>", *QWEN_2, "<im_start>", "<im_end>") if m in written]
            missing = [m for m in marks if m not in tokenizer.specials]
            if missing:
                raise ValueError(f"data.template: {name} needs the special token {missing[0]}, which the model lacks")
        elif not tokenizer.chat_template:
            raise ValueError(f"data.template: the model has no chat template; choose one of {', '.join(NAMED)}")

    @property
    def joint(self) -> bool:
        return self.named is not None and self.named.joint

    @property
    def key(self) -> str:
        """What the reference cache's key holds of a template."""
        if self.named is None:
            return f"auto:{self.tokenizer.chat_template}"
        return f"{self.name}:{self.named!r}".replace("NamedTemplate", "Seed")  # its first name: caches keep their keys

    @property
    def role_mark(self) -> str:
        """What opens an answer, and would look like one's beginning inside it."""
        return self.named.answer.strip() if self.named else "ASSISTANT:"

    def chunks(self, messages: Sequence[dict], scored: Sequence[int]) -> list[Chunk]:
        """The messages as chunks; `scored` are the indices of the assistant's that carry loss, ascending."""
        return self._named_chunks(messages, scored) if self.named else self._chat_chunks(messages, scored)

    def opening(self, messages: Sequence[dict]) -> str:
        """The (masked) messages as text, up to where an answer to them begins."""
        if self.named is None:
            return self._prompt(messages)
        empty = {"role": "assistant", "content": ""}
        return "".join(chunk.text for chunk in self._named_chunks([*messages, empty], [len(messages)])[:-1])

    # the model's own

    def _prompt(self, messages: Sequence[dict]) -> str:
        if messages != self._rendered[0]:  # both sides of a pair have the same
            self._rendered = (list(messages), self._render(messages, generation_prompt=True))
        return self._rendered[1]

    def _render(self, messages: Sequence[dict], generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.hf.apply_chat_template(
                [{"role": m["role"], "content": parts(m)} for m in messages],
                chat_template=self.tokenizer.chat_template,
                add_generation_prompt=generation_prompt,
                tokenize=False,
            )
        except TemplateError as error:
            raise BadRow("template", f"the model's chat template refuses these messages: {error}") from None
        return text.replace(*self.tokenizer.expanded) if self.tokenizer.expanded else text

    def _chat_chunks(self, messages: Sequence[dict], scored: Sequence[int]) -> list[Chunk]:
        chunks: list[Chunk] = []
        done = ""
        for k in scored:
            prompt = self._prompt(messages[:k])
            full = self._render(messages[: k + 1], generation_prompt=False)
            for longer, shorter, what in ((prompt, done, "an earlier answer"), (full, prompt, "the prompt")):
                if not longer.startswith(shorter):
                    raise BadRow(
                        "template",
                        f"the model's chat template changes {what} when more messages follow, so it is no prefix; "
                        "use data.turns = 'last' or a named template",
                    )
            answer = full[len(prompt) :]
            chunks.append(Chunk(prompt[len(done) :], False))
            end = "" if answer.rstrip().endswith(self.tokenizer.eos) else self.tokenizer.eos
            chunks.append(Chunk(answer + end, True))
            done = full
        return chunks

    # named ones

    def _named_chunks(self, messages: Sequence[dict], scored: Sequence[int]) -> list[Chunk]:
        named = self.named
        assert named is not None
        system, rest = named.system, list(messages)
        if rest and rest[0]["role"] == "system":
            own = text_of(rest.pop(0))
            system = system.replace("You are a helpful assistant.", own) if "<|im" in system else own
        chunks, open_text, number = [], system + named.system_end, 0
        for i, message in enumerate(rest, start=len(messages) - len(rest)):
            if message["role"] == "user":
                numbers = range(number + 1, number + 1 + image_count([message]))
                number += len(numbers)
                images = [named.image.format(image=self.tokenizer.image_token, number=n) for n in numbers]
                open_text += user_turn(named, "".join(images), text_of(message))
            elif message["role"] == "assistant":
                open_text += named.answer
                answer = named.lead + text_of(message)
                end = named.end.format(eos=self.tokenizer.eos)
                if i in scored:
                    chunks += [Chunk(open_text, False), Chunk(answer + end, True, len(named.lead))]
                    open_text = named.between
                else:
                    open_text += answer + end + named.between
            else:
                role = message["role"]
                raise BadRow("template", f"template {self.name} has no place for a message of role {role!r}")
        return chunks

    def messages_masked(self, messages: Sequence[dict]) -> tuple[list[dict], list[str]]:
        """Messages whose texts hold no special token any more; and the tokens that stood there, written out."""
        literals: list[str] = []

        def masked(part: dict) -> dict:
            if part["type"] != "text":
                return part
            text, here = self.tokenizer.mask(part["text"])
            literals.extend(here)
            return {"type": "text", "text": text}

        return [{"role": m["role"], "content": [masked(p) for p in parts(m)]} for m in messages], literals
