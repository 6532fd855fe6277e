"""A Pack against the plain reading of each branch, one by one: what every scored token sees, and where it stands."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmfast.data.records import Branch, Example
from mmfast.packing import Layout, Pack, Plan, PlanSettings, build_pack, response_key
from tests.make.packing_cases import KINDS, Case, random_case

LAYOUTS = {
    "plain": Layout(image_token_id=63),
    "mrope": Layout(image_token_id=63, mrope=True, merge=2),
    "unshared": Layout(image_token_id=63, share=False),
}


def read_alone(branch: Branch, case: Case) -> tuple[list, list, list[int]]:
    """What a model reads when the branch runs alone: (token, image, slot) and position of each slot; for each
    collapsed id, the slot that stands for it last."""
    seen, positions, last = [], [], []
    images, at = iter(branch.images), 0
    for token in branch.ids.tolist():
        if token != case.layout.image_token_id:
            seen.append((token, None, -1))
            positions.append((at, at, at))
            at += 1
        else:
            info = case.images[next(images)]
            top = at
            for slot in range(info.tokens):
                seen.append((token, info.id, slot))
                if case.layout.mrope:
                    h, w = info.grid[1] // case.layout.merge, info.grid[2] // case.layout.merge
                    place = (at, at + slot // w, at + slot % w)
                    assert slot // w < h
                else:
                    place = (at + slot,) * 3
                positions.append(place)
                top = max(top, *place)
            at = top + 1
        last.append(len(seen) - 1)
    return seen, positions, last


def check(pack: Pack, case: Case, gamma: float) -> None:
    tokens, features = pack.tokens.tolist(), pack.features.tolist()
    places = (pack.positions if case.layout.mrope else pack.positions.expand(3, -1)).T.tolist()
    owner = [(i, s) for i in pack.image_ids for s in range(case.images[i].tokens)]
    slots = [(t, *(owner[f] if f >= 0 else (None, -1))) for t, f in zip(tokens, features, strict=True)]
    q, k = pack.q_offsets.tolist(), pack.k_offsets.tolist()
    assert q[-1] == len(tokens) and k[-1] == len(pack.k_index)
    assert pack.max_q == max(np.diff(q)) and pack.max_k == max(np.diff(k))
    run_of = np.repeat(np.arange(len(q) - 1), np.diff(q))
    rows, targets, index = pack.rows.tolist(), pack.targets.tolist(), pack.index.tolist()
    assert rows == sorted(rows)
    assert len(set(zip(rows, targets, strict=True))) == len(rows)
    assert set(index) == set(range(len(rows)))

    # the inverse of k_index: the copies of stream token t, in order
    bounds, copies = pack.k_copy_offsets.tolist(), pack.k_copies
    assert torch.equal(pack.k_index[copies], torch.arange(len(tokens)).repeat_interleave(torch.tensor(np.diff(bounds))))
    assert all(
        sorted(part) == part for t in range(len(tokens)) for part in [copies[bounds[t] : bounds[t + 1]].tolist()]
    )

    # the inverse of index, for pairs: the tokens that each log-prob scores, in order
    if len(pack.pairs):
        starts = pack.index_offsets.tolist()
        assert [pack.index_copies[a:b].tolist() for a, b in itertools.pairwise(starts)] == [
            [n for n, v in enumerate(index) if v == u] for u in range(len(rows))
        ]
    else:
        assert pack.index_copies is None and pack.index_offsets is None

    entry_of = {}
    for p, example in enumerate(case.examples):
        sides = [example.chosen] if example.rejected is None else [example.chosen, example.rejected]
        assert pack.sample_ids[p] == example.id
        for s, branch in enumerate(sides):
            entry = p if example.rejected is None else int(pack.pairs[p, s])
            assert pack.response_ids[entry] == response_key(branch)
            scale = example.weight if example.rejected is None else 1.0
            weights = token_weights(branch, gamma) * np.float32(scale)
            a, b = pack.responses[entry : entry + 2].tolist()
            assert pack.weights[a:b].tolist() == weights.tolist()
            entry_of.setdefault((response_key(branch), weights.tobytes()), set()).add(entry)
            seen, positions, last = read_alone(branch, case)
            scored = [t for start, end in branch.spans for t in range(start, end)]
            assert len(scored) == b - a
            for u, t in zip(index[a:b], scored, strict=True):
                assert targets[u] == branch.ids[t]
                run = run_of[rows[u]]
                # bottom-right causal: a query sees the keys up to its own distance from the end of its run
                visible = pack.k_index[k[run] : k[run + 1] - (q[run + 1] - 1 - rows[u])].tolist()
                want = last[t - 1] + 1
                assert [slots[v] for v in visible] == seen[:want]
                assert [tuple(places[v]) for v in visible] == positions[:want]
    if case.examples[0].rejected is not None:
        assert all(len(e) == 1 for e in entry_of.values())
        assert len(pack.response_ids) == len(entry_of)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_scored_token_sees_its_own_path(kind: str, layout: str) -> None:
    for seed in range(2):
        case = random_case(np.random.default_rng(seed), kind, LAYOUTS[layout])
        check(build_pack(case.examples, case.images, case.layout, gamma=2.5), case, 2.5)


def tokens_alone(case: Case) -> int:
    branches = [b for e in case.examples for b in (e.chosen, e.rejected) if b is not None]
    return sum(len(read_alone(b, case)[0]) for b in branches)


@pytest.mark.parametrize("kind", ["isolated", "beginnings"])
def test_tails_are_the_runs_from_their_first_predicting_row_on(kind: str) -> None:
    case = random_case(np.random.default_rng(7), kind)
    pack = build_pack(case.examples, case.images, case.layout)
    tails, offsets = pack.tails.tolist(), pack.tail_offsets.tolist()
    assert pack.tail_offsets.dtype == torch.int32 and set(pack.rows.tolist()) <= set(tails)
    for m, (a, b) in enumerate(itertools.pairwise(pack.q_offsets.tolist())):
        inside = [row for row in pack.rows.tolist() if a <= row < b]
        assert tails[offsets[m] : offsets[m + 1]] == (list(range(min(inside), b)) if inside else [])


def test_no_token_runs_twice() -> None:
    case = random_case(np.random.default_rng(0), "captions")
    pack = build_pack(case.examples, case.images, case.layout)
    distinct = set()
    for e in case.examples:
        for b in (e.chosen, e.rejected):
            seen, _, last = read_alone(b, case)
            distinct |= {tuple(seen[: i + 1]) for i in range(last[b.spans[-1][1] - 2] + 1)}
    assert len(pack.tokens) == len(distinct)
    assert pack.unshared_tokens == tokens_alone(case)
    assert len(pack.responses) - 1 == 8 and len(pack.pairs) == 28
    assert len(pack.image_ids) == 1 and pack.features.max() == case.images[pack.image_ids[0]].tokens - 1


def test_a_pair_is_two_runs() -> None:
    """The picture of docs/packing.md."""
    prompt = [5, 63, 6, 7]
    a, b = (Branch(ids=np.asarray(prompt + r, np.int32), images=("x",), spans=((4, 4 + len(r)),))
            for r in ([8, 9, 1], [10, 1]))  # fmt: skip
    case = random_case(np.random.default_rng(0), "isolated")
    images = {"x": replace(next(iter(case.images.values())), id="x", tokens=3)}
    pack = build_pack([Example(id="0", source="f:0", chosen=a, rejected=b)], images, case.layout)
    assert pack.tokens.tolist() == [5, 63, 63, 63, 6, 7, 8, 9, 10]
    assert pack.features.tolist() == [-1, 0, 1, 2, -1, -1, -1, -1, -1]
    assert pack.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 6]
    assert pack.q_offsets.tolist() == [0, 8, 9] and pack.k_offsets.tolist() == [0, 8, 15]
    assert pack.k_index.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 8]
    assert pack.tails.tolist() == [5, 6, 7, 8] and pack.tail_offsets.tolist() == [0, 3, 4]
    assert pack.rows.tolist() == [5, 5, 6, 7, 8] and pack.targets.tolist() == [8, 10, 9, 1, 1]
    assert pack.index.tolist() == [0, 2, 3, 1, 4] and pack.responses.tolist() == [0, 3, 5]
    assert pack.pairs.tolist() == [[0, 1]] and pack.pair_weights is None and pack.ref_logps is None
    assert (pack.max_q, pack.max_k, pack.unshared_tokens) == (8, 8, 17)


def test_reference_is_looked_up_by_response() -> None:
    case = random_case(np.random.default_rng(3), "beginnings")
    cache = {}
    for e in case.examples:
        for b in (e.chosen, e.rejected):
            cache[response_key(b)] = np.random.default_rng(len(cache)).normal(size=len(token_weights(b, 1)))
    pack = build_pack(case.examples, case.images, case.layout, gamma=2.0, reference=cache)
    want = np.concatenate([cache[i] for i in pack.response_ids]).astype(np.float32)
    assert pack.ref_logps.tolist() == want.tolist()
    assert pack.pair_weights.tolist() == [e.weight for e in case.examples]
    cache.pop(response_key(case.examples[1].rejected))
    with pytest.raises(ValueError, match=r"corrected-1.*random:corrected-1.*reference cache"):
        build_pack(case.examples, case.images, case.layout, reference=cache)


def test_an_empty_pack_is_well_formed() -> None:
    for layout in LAYOUTS.values():
        pack = build_pack([], {}, layout, normaliser=8.0, reference={})
        assert pack.tokens.shape == (0,) and pack.positions.shape == ((3, 0) if layout.mrope else (0,))
        assert pack.q_offsets.tolist() == pack.k_offsets.tolist() == pack.responses.tolist() == [0]
        assert pack.tails.shape == (0,) and pack.tail_offsets.tolist() == [0]
        assert pack.pairs.shape == (0, 2) and pack.k_copy_offsets.tolist() == [0]
        assert pack.index.dtype == pack.rows.dtype == pack.tokens.dtype == torch.int64
        assert pack.ref_logps.shape == (0,) and pack.weights.dtype == torch.float32
        assert (pack.max_q, pack.max_k, pack.normaliser) == (0, 0, 8.0)


def test_images_are_loaded_once_in_feature_order() -> None:
    case = random_case(np.random.default_rng(0), "images")
    asked = []

    def load(ids: list[str]) -> dict[str, torch.Tensor]:
        asked.append(ids)
        return {"pixel_values": torch.zeros(len(ids), 3)}

    pack = build_pack(case.examples, case.images, case.layout, load_images=load)
    assert asked == [pack.image_ids] and sorted(pack.image_ids) == ["image-0", "image-1"]
    assert pack.images["pixel_values"].shape == (2, 3)
    assert pack.features.max() + 1 == sum(i.tokens for i in case.images.values())


def token_weights(branch, gamma: float) -> np.ndarray:
    """By hand: gamma where a token is changed, times the weight it was given."""
    count = sum(end - start for start, end in branch.spans)
    changed = np.zeros(count, bool) if branch.changed is None else branch.changed
    given = np.ones(count, np.float32) if branch.weights is None else branch.weights
    return np.where(changed, np.float32(gamma), np.float32(1)) * given


def test_sft_normaliser_counts_weights() -> None:
    case = random_case(np.random.default_rng(0), "sft")
    pack = build_pack(case.examples, case.images, case.layout, gamma=3.0)
    assert pack.normaliser == pytest.approx(float(pack.weights.sum()))
    assert len(pack.responses) - 1 == len(case.examples) and pack.pairs.shape == (0, 2)


def test_mistakes_are_named() -> None:
    case = random_case(np.random.default_rng(0), "isolated")
    good = case.examples[1]
    with pytest.raises(ValueError, match=r"isolated-1 .*1 image tokens but 0 images"):
        build_pack([replace(good, chosen=replace(good.chosen, images=()))], case.images, case.layout)
    with pytest.raises(ValueError, match=r"isolated-1 .*spans"):
        build_pack([replace(good, chosen=replace(good.chosen, spans=((0, 3),)))], case.images, case.layout)
    with pytest.raises(ValueError, match=r"isolated-1 .*holds an image token"):
        build_pack([replace(good, chosen=replace(good.chosen, spans=((1, 4),)))], case.images, case.layout)
    with pytest.raises(ValueError, match="not both"):
        build_pack([good, replace(good, rejected=None)], case.images, case.layout)
    with pytest.raises(ValueError, match="no ImageInfo"):
        build_pack([good], {}, case.layout)
    with pytest.raises(ValueError, match="grid"):
        broken = {i: replace(v, tokens=v.tokens + 1) for i, v in case.images.items()}
        build_pack([good], broken, Layout(image_token_id=63, mrope=True))


def test_device_moves_keep_everything() -> None:
    case = random_case(np.random.default_rng(0), "mixed")
    pack = build_pack(case.examples, case.images, case.layout)
    moved = pack.to("cpu")
    assert torch.equal(moved.k_copies, pack.k_copies) and moved.sample_ids == pack.sample_ids


def test_a_step_of_sft_rows_that_weigh_nothing_divides_by_one():
    branch = Branch(ids=np.arange(4, dtype=np.int32), images=(), spans=((2, 4),))
    example = Example(id="a", source="a:0", chosen=branch, weight=0.0)

    def of(*weights: float) -> float:
        examples = [replace(example, weight=w) for w in weights]
        plan = Plan(examples, {}, Layout(image_token_id=None), PlanSettings(pairs_per_step=8, tokens_per_pack=64))
        assert build_pack(examples, {}, Layout(image_token_id=None)).normaliser == plan.step(0, 0).normaliser
        return plan.step(0, 0).normaliser

    assert of(0.0, 0.0) == 1.0 and of(0.5) == 1.0 and of(2.0) == 4.0
    assert of(0.0, 2.0) == 4.0  # a row that weighs nothing adds nothing to a step of others
