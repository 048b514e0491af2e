"""The planner: blocks, the cheapest form by a made-up cost and by the real plan, what goes back first, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgefuse.optimize.cost import Cost, compiled_cost
from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.optimize.histogram import DEFAULT
from edgefuse.optimize.planner import Forms, find_blocks
from edgefuse.optimize.ptq import Calibrated, calibrate_part
from edgefuse.optimize.tune import Tuned
from tests.optimize_fixtures import PARTS, Net, image_part, inputs_of, outputs

QKV, UP, DOWN, OUT, ATTENTION = TEXT_BLOCKS = (
    "3 MatMul 32x32 after LayerNormalization",
    "1 MatMul 32x64 after LayerNormalization",
    "1 MatMul 64x32 after Mul",
    "1 MatMul 32x32 after Reshape",
    "1 attention",
)
KERNELS = 1000  # of an FP16 form at the made-up cost


def calibrated(model: bytes, batch: Mapping[str, NDArray[Any]]) -> Calibrated:
    return calibrate_part(model, lambda: [dict(batch)], convolutions=True, smoothing=False)


@pytest.fixture(scope="module")
def text() -> Calibrated:
    """The small text part, calibrated."""
    return calibrated(PARTS["text"], inputs_of("text", 8))


@pytest.fixture(scope="module")
def image() -> Calibrated:
    """The small image part with an outlier before its product, calibrated."""
    return calibrated(image_part(3000.0), inputs_of("image", 8))


def int8_nodes(model: bytes) -> set[str]:
    """The nodes with an input behind DequantizeLinear."""
    graph = Graph(model)
    behind = {name for name, node in graph.producers.items() if node.op_type == "DequantizeLinear"}
    return {node.name for node in graph.nodes if behind.intersection(node.input)}


class MadeUp:
    """Costs in kernels: what INT8 in each block adds; a block that is not named adds five."""

    def __init__(self, part: Calibrated, added: Mapping[str, int]) -> None:
        self.asked: list[frozenset[str]] = []
        self.nodes = {
            block.name: {*(site.node for site in block.sites), *(product.node for product in block.products)}
            for block in find_blocks(part)
        }
        assert set(added) <= set(self.nodes)
        self.added = added

    def __call__(self, model: bytes) -> Cost:
        nodes = int8_nodes(model)
        blocks = frozenset(name for name, its in self.nodes.items() if its & nodes)
        assert all(self.nodes[name] <= nodes for name in blocks)  # a block is switched as a whole
        self.asked.append(blocks)
        return Cost(KERNELS + sum(self.added.get(name, 5) for name in blocks), bytes_touched=0)


def forms_of(part: Calibrated, cost_of: Callable[[bytes], Cost]) -> Forms:
    return Forms(Tuned(part, DEFAULT), cost_of)


def test_a_block_is_every_node_with_the_same_task(text: Calibrated, image: Calibrated) -> None:
    blocks = find_blocks(text)
    assert tuple(block.name for block in blocks) == TEXT_BLOCKS
    assert [len(block.sites) for block in blocks] == [3, 1, 1, 1, 0]
    assert [product.node for product in blocks[-1].products] == ["scores", "mixed"]
    assert [block.by_default for block in blocks] == [True, True, True, True, False]
    product = next(node.name for node in image.graph.nodes if node.op_type == "MatMul")
    kinds = {block.name: (block.by_default, sorted(site.node for site in block.sites)) for block in find_blocks(image)}
    assert kinds == {
        "2 dense Conv": (False, ["last", "stem"]),
        "1 pointwise Conv": (False, ["branch"]),
        "1 depthwise Conv": (False, ["depthwise"]),
        "1 MatMul 32x32 after Mul": (True, [product]),
    }


def test_a_block_that_is_cheaper_in_int8_is_taken_and_a_dearer_one_is_not(text: Calibrated) -> None:
    forms = forms_of(text, MadeUp(text, {QKV: -20, UP: 20, DOWN: -10, OUT: 4, ATTENTION: -6}))
    best = forms.cheapest()
    assert best.int8 == {QKV, DOWN, ATTENTION}  # an attention, FP16 at first, is taken where it pays
    assert best.cost == Cost(KERNELS - 36, 0)
    assert forms.best is best
    assert int8_nodes(forms.model(best.int8)) == set().union(*(MadeUp(text, {}).nodes[name] for name in best.int8))


def test_a_convolution_is_taken_where_it_pays(image: Calibrated) -> None:
    best = forms_of(image, MadeUp(image, {"1 pointwise Conv": -50})).cheapest()
    assert best.int8 == {"1 pointwise Conv"}


def test_blocks_that_pay_only_together_are_found_from_the_default(text: Calibrated) -> None:
    """Neither of two products pays alone, both do together: the planner begins with all of them."""
    made_up = MadeUp(text, {UP: 10, DOWN: 10})

    def cost_of(model: bytes) -> Cost:
        cost = made_up(model)
        together = {UP, DOWN} <= made_up.asked[-1]
        return Cost(cost.kernels - 40 * together, 0)

    assert forms_of(text, cost_of).cheapest().int8 == {UP, DOWN}


def test_fp16_is_the_form_where_no_int8_pays(text: Calibrated) -> None:
    forms = forms_of(text, MadeUp(text, {}))
    assert forms.cheapest().int8 == frozenset()
    assert int8_nodes(forms.model(forms.cheapest().int8)) == set()


@pytest.mark.parametrize(("saved", "worth"), [(1, False), (3, True)])
def test_a_saving_of_a_thousandth_is_not_worth_int8(text: Calibrated, saved: int, worth: bool) -> None:
    best = forms_of(text, MadeUp(text, {OUT: -saved})).cheapest()
    assert best.int8 == ({OUT} if worth else frozenset())


def test_a_block_is_not_switched_for_a_thousandth(text: Calibrated) -> None:
    best = forms_of(text, MadeUp(text, {QKV: -50, ATTENTION: -1, OUT: 1})).cheapest()
    assert best.int8 == {QKV, OUT}  # an attention begins in FP16, a product in INT8


@pytest.mark.parametrize(("spread_us", "chosen"), [(1.0, {QKV}), (30.0, set())])
def test_a_form_that_is_quicker_within_the_spread_is_not_cheaper(
    text: Calibrated, spread_us: float, chosen: set[str]
) -> None:
    made_up = MadeUp(text, {QKV: -20})

    def cost_of(model: bytes) -> Cost:
        return Cost(None, None, float(made_up(model).kernels or 0), spread_us)

    forms = forms_of(text, cost_of)
    assert forms.cheapest().int8 == chosen
    why = {row["block"]: row["why"] for row in forms.reasons(chosen)}
    assert why[UP] == f"INT8 here takes +5.0 us (spread {spread_us:.1f})"


def test_a_form_is_compiled_once(text: Calibrated) -> None:
    made_up = MadeUp(text, {QKV: -20})
    forms = forms_of(text, made_up)
    best = forms.cheapest()
    assert forms.form(best.int8) is best
    forms.cheapest()
    forms.reasons(best.int8)
    assert len(made_up.asked) == len(set(made_up.asked)) == len(forms.made) <= len(TEXT_BLOCKS) + 2
    assert set(forms.made) == set(made_up.asked)


def test_a_form_computes_what_the_part_computes(text: Calibrated) -> None:
    forms = forms_of(text, MadeUp(text, {}))
    (exact,) = outputs(PARTS["text"], inputs_of("text"))
    for int8 in ((), TEXT_BLOCKS):
        (found,) = outputs(forms.model(int8), inputs_of("text"), exact_qdq=True)
        assert np.abs(found - exact).max() < (0.01 if not int8 else 0.3)


def test_the_noisiest_block_is_the_one_with_an_outlier(image: Calibrated) -> None:
    forms = forms_of(image, MadeUp(image, {}))
    everything = forms.form(block.name for block in forms.blocks)
    order = forms.noisiest(everything, inputs_of("image", 8))
    assert set(order) == everything.int8
    assert order[0] == "1 MatMul 32x32 after Mul"
    assert forms.noisiest(forms.form(["1 pointwise Conv"]), inputs_of("image", 8)) == ["1 pointwise Conv"]


def test_the_order_is_that_of_the_errors_alone(text: Calibrated) -> None:
    forms = forms_of(text, MadeUp(text, {}))
    batch = inputs_of("text", 8)
    exact, *others = (
        outputs(forms.model(int8), batch, exact_qdq=True)[0] for int8 in ((), *([name] for name in TEXT_BLOCKS))
    )
    error = {name: np.square(found - exact).mean() for name, found in zip(TEXT_BLOCKS, others, strict=True)}
    assert forms.noisiest(forms.form(TEXT_BLOCKS), batch) == sorted(TEXT_BLOCKS, key=lambda name: -error[name])


def test_the_reasons_name_each_block_and_what_int8_changed(text: Calibrated) -> None:
    forms = forms_of(text, MadeUp(text, {QKV: -20, DOWN: -10}))
    best = forms.cheapest()
    rows = {row["block"]: (row["precision"], row["why"]) for row in forms.reasons(best.int8)}
    assert rows == {
        QKV: ("int8", "INT8 here makes -20 kernels and +0 kB"),
        UP: ("fp16", "INT8 here makes +5 kernels and +0 kB"),
        DOWN: ("int8", "INT8 here makes -10 kernels and +0 kB"),
        OUT: ("fp16", "INT8 here makes +5 kernels and +0 kB"),
        ATTENTION: ("fp16", "INT8 here makes +5 kernels and +0 kB"),
        "1 Gather": ("fp16", "a table so small that INT8 only adds a kernel"),
    }
    given_back = {row["block"]: row for row in forms.reasons(best.int8 - {DOWN})}
    assert given_back[DOWN]["precision"] == "fp16"
    assert given_back[DOWN]["why"].endswith("-10 kernels and +0 kB; given back to FP16 for the gate")
    assert "given back" not in given_back[UP]["why"]


def test_what_nothing_was_compiled_for_was_asked_for(text: Calibrated) -> None:
    forms = forms_of(text, MadeUp(text, {}))
    for int8 in ((), TEXT_BLOCKS):
        rows = forms.reasons(int8)[:-1]
        assert {(row["precision"], row["why"]) for row in rows} == {("int8" if int8 else "fp16", "as asked for")}
    assert forms.made == {}


def mobilenet() -> bytes:
    """A stem and two depthwise-separable convolutions, as MobileNetV3 has them."""
    net = Net(11)
    x = net.add("HardSwish", net.add("Conv", "x", net.weight(16, 3, 3, 3), strides=[2, 2], pads=[1] * 4))
    for _ in range(2):
        x = net.add("HardSwish", net.add("Conv", x, net.weight(16, 1, 3, 3), group=16, pads=[1] * 4))
        x = net.add("HardSwish", net.add("Conv", x, net.weight(16, 16, 1, 1)))
    return net.model({"x": (FLOAT, [3, 32, 32])}, {"y": x})


def random_x(*shape: int) -> dict[str, NDArray[np.float32]]:
    return {"x": np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)}


def test_by_the_real_plan_mobilenet_convolutions_stay_fp16() -> None:
    part = calibrated(mobilenet(), random_x(3, 32, 32))
    forms = forms_of(part, compiled_cost)
    assert {block.name for block in forms.blocks} == {"1 dense Conv", "2 depthwise Conv", "2 pointwise Conv"}
    assert forms.cheapest().int8 == frozenset()
    assert all("INT8 here makes +" in row["why"] for row in forms.reasons(()))


def test_by_the_real_plan_a_large_product_is_int8() -> None:
    net = Net(12)
    model = net.model({"x": (FLOAT, [16, 768])}, {"y": net.linear("x", 768, 1024)})
    forms = forms_of(calibrated(model, random_x(16, 768)), compiled_cost)
    assert forms.cheapest().int8 == {"1 MatMul 768x1024"}
    (row,) = forms.reasons(forms.cheapest().int8)
    assert row["why"].startswith("INT8 here makes ")
    assert int(row["why"].split()[-2]) < -600  # kB: most of the half of the weights
