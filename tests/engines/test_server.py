"""The server engine against a server that misbehaves, and against a real one: `transformers serve`, where its packages
are."""

import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from email.utils import formatdate

import pytest

pytest.importorskip("openai")

from mmfast.engines.base import Constraint, Decode, Picture
from mmfast.engines.plain import Plain
from mmfast.engines.server import Server
from mmfast.engines.server_calls import ServerFault, Usage, wait_of
from mmfast.engines.server_wire import data_url
from mmfast.world.models import tiny_model
from tests.make.questions import ask, picture
from tests.make.real_server import free_port, real
from tests.make.stub_server import END, MODEL, WORDS, Stub, seen_images, serving

EIGHT = Decode(max_tokens=8)
WARM = Decode(max_tokens=8, temperature=1.5)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "MMFAST_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def engine(*stubs: Stub, model: str = MODEL, **settings):
    """A server engine and its stubs, with the handshake behind them."""
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(stub)).url for stub in stubs]
        server = Server(urls, model, **{"pause": 0.01, "timeout": 1.0} | settings)
        stack.callback(server.close)
        for stub in stubs:
            stub.handshake, stub.most_at_once = len(stub.asked), 0
        yield server


def sorted_answers(server, *requests):
    order = {request.key: i for i, request in enumerate(requests)}
    return sorted(server.answer(requests), key=lambda reply: (order[reply.key], reply.sample))


# what a server honours


def test_a_server_that_does_all_is_asked_for_all():
    with engine(Stub()) as server:
        assert server.can == {
            "constraint",
            "images",
            "labels",
            "logp",
            "prefix",
            "repetition_penalty",
            "sample",
            "stop",
        }
        made = server.identity()
        assert made["model"] == MODEL and made["honours"]["seed"] and made["honours"]["choice"] == "structured_outputs"
        assert "http" not in str(made), "where a server runs changes no answer"


@pytest.mark.parametrize(
    ("ignored", "named"),
    [
        ("n", "n"),
        ("temperature", "sample"),
        ("seed", "seed"),
        ("stop", "stop"),
        ("prefix", "prefix"),
        ("images", "images"),
        ("pixels", "images"),
        ("logprobs", "top_logprobs"),
        ("logprob_token_ids", "token_ids"),
        ("prompt_logprobs", "prompt_logprobs"),
        ("structured_outputs", "regex"),
        ("top_k", "top_k"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("repetition_penalty", "repetition_penalty"),
    ],
)
def test_what_is_heard_and_not_followed_is_found_out(ignored, named):
    with engine(Stub(ignores={ignored})) as server:
        honours = server.identity()["honours"]
        assert not honours[named]
        others = {"n", "sample", "seed", "stop", "prefix", "images", "top_logprobs", "regex"} - {named}
        if named == "sample":
            others -= {"seed", "n"}  # nothing is drawn
        if named == "seed":
            others -= {"n"}
        assert all(honours[name] for name in others)


def test_samples_of_a_server_without_n_are_asked_for_one_by_one():
    request = ask("What?", picture(), n=4, decode=WARM)
    stub = Stub(ignores={"n"})
    with engine(stub) as server:
        replies = sorted_answers(server, request)
        asked = stub.questions()
    assert [reply.sample for reply in replies] == [0, 1, 2, 3] and len({reply.text for reply in replies}) == 4
    assert len(asked) == 4 and len({body["seed"] for body in asked}) == 4 and not any("n" in body for body in asked)


def test_samples_come_in_one_call_where_n_is_honoured():
    stub = Stub()
    with engine(stub) as server:
        replies = sorted_answers(server, ask("What?", picture(), n=4, decode=WARM))
        assert len({reply.text for reply in replies}) == 4 and [body["n"] for body in stub.questions()] == [4]
        assert all(reply.tokens == len(reply.text.split()) + (reply.finish == "stop") for reply in replies)


def test_sampling_by_another_way_is_tried():
    with engine(Stub(samples_by="generation_config")) as server:
        assert server.identity()["honours"]["form"] == "generation_config" and "sample" in server.can
        replies = sorted_answers(server, ask("What?", n=3, decode=WARM))
        assert len({reply.text for reply in replies}) == 3


def test_what_a_server_ignores_is_refused_by_name_and_the_rest_goes_on():
    stub = Stub(ignores={"top_k", "structured_outputs", "prefix", "logprobs"})
    with engine(stub) as server:
        requests = [
            ask("a", decode=replace(WARM, top_k=3)),
            ask("b", constraint=Constraint(regex="[ab]+")),
            ask("c", begins="two red", decode=EIGHT),
            ask("d", labels=("yes",), decode=EIGHT),
            ask("e", decode=Decode(beams=2)),
            ask("f", decode=EIGHT),
        ]
        told = [reply.error for reply in sorted_answers(server, *requests)]
        assert told[0] == "this server ignores top_k" and told[1] == "this server ignores a constraint by regex"
        assert [message.split(" (")[0] for message in told[2:5]] == [
            f"this engine has no {name}" for name in ("prefix", "labels", "beams")
        ]
        assert told[5] == "" and len(stub.questions()) == 1


def test_a_choice_goes_by_the_schema_where_only_that_is_honoured():
    stub = Stub(ignores={"structured_outputs"})
    with engine(stub) as server:
        (reply,) = server.answer([ask("Is it?", constraint=Constraint(choice=("no", "yes")))])
        assert reply.text == "no" and "response_format" in stub.questions()[0]


def test_a_stop_string_is_cut_here_where_the_server_does_not():
    with engine(Stub()) as server, engine(Stub(ignores={"stop"})) as other:
        (whole,) = server.answer([ask("What?", decode=EIGHT)])
        stop = whole.text.split()[3]
        request = ask("What?", decode=replace(EIGHT, stop=(stop,)))
        (there,), (here,) = [*server.answer([request])], [*other.answer([request])]
        assert there.text == here.text == whole.text[: whole.text.index(stop)].strip()
        assert there.finish == here.finish == "stop" and here.tokens == 8, "it paid for all of them"
        assert here.logp is None


def test_a_whole_decode_and_a_seed_are_in_every_call():
    """No default of the server's own generation_config leaks in."""
    stub = Stub()
    with engine(stub) as server:
        sorted_answers(server, ask("a", decode=EIGHT), ask("b", n=2, decode=WARM), ask("c", n=0, labels=("yes",)))
        wanted = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"}
        assert all(wanted <= body.keys() for body in stub.asked)


def test_a_server_with_openais_own_names_alone():
    stub = Stub(refuses={"strange", "max_tokens"})
    with engine(stub) as server:
        honours = server.identity()["honours"]
        assert (honours["form"], honours["length"]) == ("bare", "max_completion_tokens")
        assert honours["schema"] == honours["choice"] == "response_format" and not honours["regex"]
        (reply,) = server.answer([ask("a", decode=EIGHT)])
        assert reply.tokens == 8 and not reply.error


def test_requests_go_one_by_one_where_they_disturb_each_other():
    """One whose answers change with what else it has to do: seeds that overtake each other, for one."""
    stub = Stub(takes=0.02)

    def disturbed(body):
        if stub.at_once == 1:
            return None
        answer = stub.completion(body)
        answer["choices"][0]["message"]["content"] += " or so"
        return 200, {}, answer

    stub.always = disturbed
    with engine(stub) as server:
        assert not server.honours.at_once and "at_once" not in server.identity()["honours"]
        replies = [*server.answer([ask(f"{i}", decode=EIGHT) for i in range(6)])]
        assert not any("or so" in reply.text for reply in replies) and stub.most_at_once == 1


# labels


def exact(stub, request, label):
    """log P of the label from the stub's own model."""
    from mmfast.engines.server_wire import wired

    before = stub.tokens(wired(request.messages, request.images), opened=True)
    total = 0.0
    for word in label.split():
        total += float(stub.logps(before)[WORDS.index(f" {word}")])
        before.append(f" {word}")
    return total


@pytest.mark.parametrize("ignored", [set(), {"logprob_token_ids"}, {"prompt_logprobs"}, {"tokenize"}])
def test_labels_by_the_best_means_that_is_honoured(ignored):
    stub = Stub(ignores=set(ignored), most_shown=20)
    labels = ("yes", "no") if ignored & {"prompt_logprobs", "tokenize"} else ("yes", "no", "two red star")
    request = ask("Is it?", picture(), n=0, labels=labels)
    with engine(stub) as server:
        (reply,) = server.answer([request])
        assert not reply.error and reply.text == "" and reply.bounded == ()
        assert reply.labels == pytest.approx({label: exact(stub, request, label) for label in labels}, abs=1e-6)
        used = {name for body in stub.questions() for name in ("logprob_token_ids", "prompt_logprobs") if name in body}
        assert ("logprob_token_ids" in used) == (not ignored & {"logprob_token_ids", "tokenize"})


def test_a_label_that_is_not_shown_is_bounded_and_says_so():
    stub = Stub(ignores={"tokenize"}, most_shown=3)
    request = ask("Is it?", picture(), n=0, labels=tuple(word.strip() for word in WORDS[:END]))
    with engine(stub) as server:
        (reply,) = server.answer([request])
        assert len(reply.bounded) >= len(WORDS) - 4
        for label, logp in reply.labels.items():
            truth = exact(stub, request, label)
            assert truth <= logp + 1e-9 if label in reply.bounded else truth == pytest.approx(logp)


def test_a_label_too_long_for_the_means_is_refused():
    with engine(Stub(ignores={"prompt_logprobs"})) as server:
        (reply,) = server.answer([ask("Is it?", n=0, labels=("two red",))])
        assert "the label 'two red' has 2 tokens" in reply.error


# images


def test_an_image_goes_as_its_own_bytes_every_time():
    stub = Stub()
    with engine(stub) as server:
        sorted_answers(server, ask("a", picture(), decode=EIGHT), ask("b", picture(), decode=EIGHT))
        urls = [url for body in stub.questions() for url in seen_images(body)]
        assert urls == [data_url(picture().data)] * 2 and urls[0].startswith("data:image/png;base64,")


def test_a_broken_image_is_found_before_anything_is_sent():
    stub = Stub()
    with engine(stub) as server:
        broken = ask("broken", Picture("broken.png", b"no picture"), n=2, decode=WARM)
        cut = ask("cut", Picture("cut.png", picture().data[:-200]), decode=EIGHT)
        gone = ask("gone", Picture("/nowhere/gone.png"), decode=EIGHT)
        replies = sorted_answers(server, broken, cut, gone, ask("good", picture(), decode=EIGHT))
        assert [bool(reply.error) for reply in replies] == [True, True, True, True, False]
        assert "cannot be decoded" in replies[0].error and "gone.png" in replies[3].error
        assert len(stub.questions()) == 1


def test_an_image_stays_with_one_endpoint():
    stubs = Stub(), Stub()
    with engine(*stubs) as server:
        requests = [ask(f"{i} {q}", picture(i), decode=EIGHT) for i in range(8) for q in range(4)]
        assert not any(reply.error for reply in server.answer(requests))
        first, second = ({url for body in stub.questions() for url in seen_images(body)} for stub in stubs)
        assert len(first) + len(second) == 8 and not first & second and min(len(first), len(second)) > 0


# faults


@pytest.mark.parametrize(
    "fault", [500, 503, 429, 408, "hang", "close", "half", "no json", "other json", (429, {"Retry-After": "0"}, {})]
)
def test_a_fault_is_tried_again_on_a_fresh_connection(fault):
    stub = Stub()
    with engine(stub, timeout=0.5) as server:
        (expected,) = server.answer([ask("What?", picture(), decode=EIGHT)])
        stub.faults = [fault, fault]
        (reply,) = server.answer([ask("What?", picture(), decode=EIGHT)])
        assert reply == expected and server.usage.retries == 2
        assert len(set(stub.ports[-3:])) == 3
        assert "2 tries more" in server.usage.told()


def test_a_fault_that_stays_is_its_requests_and_the_rest_goes_on():
    stub = Stub()
    with engine(stub, retries=2) as server:
        stub.always = lambda body: 500 if "bad" in str(body["messages"]) else None
        bad, good = sorted_answers(server, ask("bad", n=2, decode=WARM), ask("good", decode=EIGHT))[1:]
        assert "said 500: fault 500" in bad.error and not good.error
        stub.always = lambda body: "hang" if "bad" in str(body["messages"]) else None
        bad, good = sorted_answers(server, ask("bad", decode=EIGHT), ask("good", decode=EIGHT))
        assert "gave no answer in 1 s" in bad.error and not good.error


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_server_will_not_take_is_not_asked_again(status):
    stub = Stub()
    with engine(stub) as server:
        stub.faults = [status]
        (reply,) = server.answer([ask("What?", decode=EIGHT)])
        assert f"said {status}" in reply.error and len(stub.questions()) == 1


def test_retry_after_is_waited_for():
    stub = Stub()
    with engine(stub) as server:
        stub.faults = [(429, {"Retry-After": "0.4"}, {"error": {"message": "slowly"}})]
        began = time.monotonic()
        (reply,) = server.answer([ask("What?", decode=EIGHT)])
        assert not reply.error and time.monotonic() - began >= 0.4
    assert wait_of({"retry-after": "3"}) == 3 and wait_of({"retry-after-ms": "250"}) == 0.25
    assert 50 < wait_of({"retry-after": formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert wait_of({}) == wait_of({"retry-after": "soon"}) == wait_of({"retry-after": "-1"}) == 0


def test_no_more_calls_are_under_way_than_allowed():
    stub = Stub()
    with engine(stub, concurrency=3) as server:
        stub.takes = 0.02
        replies = [*server.answer(ask(f"{i}", decode=EIGHT) for i in range(20))]
        assert len(replies) == 20 and stub.most_at_once == 3


def test_replies_come_while_requests_are_still_read():
    with engine(Stub(), concurrency=1) as server:
        given = []

        def requests():
            for i in range(50):
                given.append(i)
                yield ask(f"{i}", decode=EIGHT)

        next(answers := server.answer(requests()))
        assert len(given) < 20
        answers.close()


def test_an_endpoint_that_goes_down_leaves_its_work_to_the_others():
    stub = Stub()
    with ExitStack() as stack:
        going = ExitStack()
        stack.enter_context(serving(stub))
        other = going.enter_context(serving(Stub()))
        server = Server([stub.url, other.url], MODEL, pause=0.01)
        going.close()
        replies = [*server.answer([ask(f"{i}", picture(i % 4), decode=EIGHT) for i in range(12)])]
        assert len(replies) == 12 and not any(reply.error for reply in replies)
        server.close()


def test_a_server_that_goes_down_ends_the_run():
    with ExitStack() as stack:
        stub = stack.enter_context(serving(Stub()))
        server = Server(stub.url, MODEL, pause=0.01, retries=1)
        stack.close()
        with pytest.raises(ServerFault, match=r"http.* cannot be reached: is the server running there\?"):
            [*server.answer([ask("What?", decode=EIGHT)])]
        server.close()


def test_no_money_ends_the_run():
    stub = Stub()
    with engine(stub) as server:
        stub.always = (429, {}, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
        with pytest.raises(ServerFault, match=r"the account has no money left .You exceeded your quota"):
            [*server.answer([ask("What?", decode=EIGHT)])]
        stub.always = (402, {}, {"error": {"message": "pay"}})
        with pytest.raises(ServerFault, match=r"no money left .pay"):
            [*server.answer([ask("What?", decode=EIGHT)])]


# starts


def test_starts_that_cannot_be_are_a_line_each(monkeypatch):
    with pytest.raises(ServerFault, match="cannot be reached: is the server running there"):
        Server(f"http://127.0.0.1:{free_port()}", MODEL, pause=0.01)
    with pytest.raises(ServerFault, match="'localhost:8000' is no address of a server"):
        Server("localhost:8000", MODEL)
    with serving(Stub()) as stub, pytest.raises(ServerFault, match="serves no model 'other'; it serves someone/stub"):
        Server(stub.url, "other", pause=0.01)
    with serving(Stub(always=(402, {}, {}))) as stub, pytest.raises(ServerFault, match="no money left"):
        Server(stub.url, MODEL, pause=0.01)
    with (
        serving(Stub(always=500)) as stub,
        pytest.raises(ServerFault, match=r"the first question .* failed: .* said 500"),
    ):
        Server(stub.url, MODEL, pause=0.01)
    with serving(Stub(key="right")) as stub:
        with pytest.raises(ServerFault, match="wants a key: set MMFAST_API_KEY"):
            Server(stub.url, MODEL, pause=0.01)
        monkeypatch.setenv("MMFAST_API_KEY", "sk-wrong")
        with pytest.raises(ServerFault, match="refuses the key in MMFAST_API_KEY") as told:
            Server(stub.url, MODEL, pause=0.01)
        assert "sk-wrong" not in str(told.value), "the server repeats it, and mmfast does not"
        monkeypatch.setenv("MMFAST_API_KEY", "right")
        Server(stub.url, MODEL, pause=0.01).close()


def test_a_key_is_never_told(monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    stub = Stub(key="sk-secret")
    with engine(stub, retries=0) as server:
        stub.always = 500
        (reply,) = server.answer([ask("What?", decode=EIGHT)])
        assert "fault 500 with key Bearer (the key)" in reply.error
        assert "sk-secret" not in f"{server.identity()}{server.usage.told()}{capfd.readouterr()}"


def test_tokens_and_cost_are_counted():
    with engine(Stub(), prices=(1.0, 1000.0)) as server:
        before = replace(server.usage)
        (reply,) = server.answer([ask("What?", decode=EIGHT)])
        written = server.usage.completion_tokens - before.completion_tokens
        read = server.usage.prompt_tokens - before.prompt_tokens
        assert written == reply.tokens == 8 and read > 0
        assert server.usage.cost - before.cost == pytest.approx((read + 1000 * written) / 1e6)


def test_what_was_told_of_the_use_is_read_back():
    first, second = Usage(calls=3, prompt_tokens=12, completion_tokens=4), Usage(calls=1, retries=2, cost=0.25)
    shown = f"critique: 1/2, 3 s, {first.told()}\n"  # as a progress bar leaves it
    told = Usage.said_in(f"{shown}out: 3 rows; {first.told()}\njudge: {second.told()}\n")
    assert told == Usage(calls=4, retries=2, prompt_tokens=12, completion_tokens=4, cost=0.25)


def test_a_sample_depends_on_its_key_number_and_seed_alone():
    stub = Stub()
    request = ask("What?", picture(), key="one", n=3, decode=WARM)
    with engine(stub) as server:
        alone = sorted_answers(server, request)
        mixed = [*server.answer([*(ask(f"{i}", n=2, decode=WARM) for i in range(9)), request])]
        assert sorted((r for r in mixed if r.key == "one"), key=lambda r: r.sample) == alone
        other = sorted_answers(server, replace(request, decode=replace(WARM, seed=1)))
        assert [reply.text for reply in other] != [reply.text for reply in alone]


# a real one


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, model) of a tiny LLaVA behind `transformers serve`."""
    model = tiny_model("llava", tmp_path_factory.mktemp("served") / "llava", seed=3)
    with real(model) as url:
        yield url, model


def test_a_real_server_says_what_it_honours_and_looks_at_the_image(served):
    url, model = served
    server = Server(url, str(model), pause=0.1)
    try:
        honours = server.identity()["honours"]
        assert honours["form"] == "generation_config" and not honours["n"] and not honours["regex"]
        assert {"sample", "images", "stop"} <= server.can and not {"labels", "prefix", "constraint"} & server.can
        first, second = sorted_answers(
            server, *(ask("Describe it.", picture(i), key=f"{i}", decode=EIGHT) for i in (0, 1))
        )
        assert first.text != second.text and first.tokens == 8
        plain = [*Plain(model).answer([ask("Describe it.", picture(0), key="0", decode=EIGHT)])]
        assert first.text == plain[0].text
        drawn = ask("Describe it.", picture(), key="drawn", n=3, decode=WARM)
        replies, again = sorted_answers(server, drawn), sorted_answers(server, drawn)
        assert len({reply.text for reply in replies}) == 3 and replies == again
        (broken,) = server.answer([ask("What?", Picture("broken.png", b"no picture"))])
        assert "cannot be decoded" in broken.error
        stop = first.text[3:5]
        (cut,) = server.answer([ask("Describe it.", picture(0), key="0", decode=replace(EIGHT, stop=(stop,)))])
        assert cut.text == first.text[: first.text.index(stop)].strip()
    finally:
        server.close()


def test_the_real_server_has_no_other_model(served):
    with pytest.raises(ServerFault, match="'someone/else'"):
        Server(served[0], "someone/else", pause=0.1, retries=0)
