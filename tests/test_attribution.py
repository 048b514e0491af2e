"""What an answer hangs on: the Shapley axioms, and captum and shap on the torch model as the oracle of every map."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, Occlusion, ShapleyValues
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from edgefuse.runtime.attribution import (
    Moment,
    audio_map,
    coalitions,
    image_map,
    log_odds,
    picture_stride,
    shapley_values,
    sound_stride,
    word_importance,
)
from edgefuse.runtime.backend import OpenParts
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.errors import BackendError
from edgefuse.runtime.predictor import Predictor
from edgefuse.runtime.preprocess import Tokenizer
from tests.conftest import MODALITIES
from tests.explain_fixtures import (
    HEIGHT,
    LABELS,
    PIECES,
    SAMPLES,
    TOKENS,
    WIDTH,
    TorchModel,
    export_bundle,
    sensed,
    tokenizer_document,
)

PLAYERS = ("a", "b", "c", "d")
LABEL = 2
TOLERANCE = 2e-4  # log-odds; the parts agree with torch to 1e-5 or so, the maps below reach from 0.1 to 10

worths = st.floats(-50, 50, allow_nan=False, width=32)
games = st.integers(1, 4).flatmap(lambda count: st.lists(worths, min_size=2**count, max_size=2**count))


def shapley(game: list[float]) -> list[float]:
    players = PLAYERS[: len(game).bit_length() - 1]
    return list(shapley_values(players, game).values())


def over_all_orders(players: tuple[str, ...], worth: Callable[[set[str]], float]) -> dict[str, float]:
    """The definition: what each adds to those before it, averaged over all orders."""
    added: dict[str, list[float]] = {player: [] for player in players}
    for order in itertools.permutations(players):
        for place, player in enumerate(order):
            added[player].append(worth(set(order[: place + 1])) - worth(set(order[:place])))
    return {player: float(np.mean(values)) for player, values in added.items()}


@given(games)
def test_the_values_add_up_to_what_all_are_worth_over_none(game):
    assert sum(shapley(game)) == pytest.approx(game[-1] - game[0], abs=1e-9)


@given(games)
def test_the_values_are_the_averages_over_all_orders(game):
    players = PLAYERS[: len(game).bit_length() - 1]
    known = {frozenset(coalition): worth for coalition, worth in zip(coalitions(players), game, strict=True)}

    expected = over_all_orders(players, lambda coalition: known[frozenset(coalition)])

    assert shapley_values(players, game) == pytest.approx(expected, abs=1e-9)


@given(games, st.data())
def test_players_who_add_the_same_to_everyone_have_the_same_value(game, data):
    players = PLAYERS[: len(game).bit_length() - 1]
    one, other = (data.draw(st.sampled_from(players)) for _ in range(2))
    swap = {one: other, other: one}
    known = {frozenset(c): worth for c, worth in zip(coalitions(players), game, strict=True)}
    fair = [(known[frozenset(c)] + known[frozenset(swap.get(p, p) for p in c)]) / 2 for c in coalitions(players)]

    values = shapley_values(players, fair)

    assert values[one] == pytest.approx(values[other], abs=1e-9)


@given(games, st.data())
def test_a_player_who_adds_nothing_has_no_value(game, data):
    players = PLAYERS[: len(game).bit_length() - 1]
    idle = data.draw(st.sampled_from(players))
    known = {frozenset(c): worth for c, worth in zip(coalitions(players), game, strict=True)}

    values = shapley_values(players, [known[frozenset(c) - {idle}] for c in coalitions(players)])

    assert values[idle] == pytest.approx(0, abs=1e-9)


@given(games, worths, worths)
def test_the_values_of_a_mixture_are_the_mixture_of_the_values(game, share, shift):
    other = [shift + worth**2 / 50 for worth in reversed(game)]
    mixed = [share * a + b for a, b in zip(game, other, strict=True)]

    expected = [share * a + b for a, b in zip(shapley(game), shapley(other), strict=True)]

    assert shapley(mixed) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=6), st.floats(-20, 20, width=32))
def test_log_odds_are_those_of_the_softmax_and_know_no_common_shift(logits, shift):
    logits = np.array(logits)
    p = torch.tensor(logits, dtype=torch.float64).softmax(dim=0)

    for label in range(len(logits)):
        others = float(p.sum() - p[label]) if p[label] < 0.5 else float(p[torch.arange(len(p)) != label].sum())
        assert log_odds(logits, label) == pytest.approx(float(p[label].log()) - np.log(others), abs=1e-6)
        assert log_odds(logits + shift, label) == pytest.approx(float(log_odds(logits, label)), abs=1e-9)


@pytest.fixture(scope="module")
def torch_model() -> TorchModel:
    return TorchModel()


@pytest.fixture(scope="module")
def bundle(torch_model: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The torch model as ONNX parts; read only."""
    return export_bundle(torch_model, tmp_path_factory.mktemp("explained") / "bundle")


@pytest.fixture(scope="module")
def inputs(bundle: Bundle) -> dict[str, dict[str, NDArray[Any]]]:
    preprocessor = Predictor(bundle, OnnxBackend(bundle)).preprocessor
    return {m: preprocessor.prepare(m, value) for m, value in sensed().items()}


@pytest.fixture(scope="module")
def moment(bundle: Bundle, inputs: dict[str, dict[str, NDArray[Any]]]) -> Moment:
    """The moment as the exported parts see it."""
    return Moment(Predictor(bundle, OnnxBackend(bundle, threads=1)), inputs, LABEL)


@pytest.fixture(scope="module")
def tensors(inputs: dict[str, dict[str, NDArray[Any]]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for given in inputs.values() for name, array in given.items()}


@pytest.fixture(scope="module")
def of_torch(torch_model: TorchModel, tensors: dict[str, Tensor]) -> Callable[..., Tensor]:
    """Log-odds of the torch model when a tensor is replaced, or with another presence."""

    def run(presence: Tensor | None = None, **changed: Tensor) -> Tensor:
        with torch.no_grad():
            return torch_model.log_odds(
                {**tensors, **changed}, torch.ones(1, 3) if presence is None else presence, LABEL
            )

    return run


def assert_close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal within a tolerance that is small beside what the numbers say."""
    assert np.abs(expected).max() > 50 * TOLERANCE
    assert np.std(expected) > 10 * TOLERANCE
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_sensor_values_are_those_of_captum_on_the_torch_model(moment, of_torch):
    expected = ShapleyValues(lambda presence: of_torch(presence.float())).attribute(torch.ones(1, 3), baselines=0.0)

    assert_close(np.array(list(shapley_values(MODALITIES, moment.worth).values())), expected[0].numpy())


@pytest.mark.filterwarnings("ignore")  # shap's own, while it is imported
def test_sensor_values_are_those_of_shap_on_the_torch_model(moment, of_torch, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # to compile three loops takes ten seconds
    import shap

    def run(presence: NDArray[Any]) -> NDArray[Any]:
        return of_torch(torch.from_numpy(np.asarray(presence, np.float32))).numpy()

    found = shap.explainers.Exact(run, np.zeros((1, 3)))(np.ones((1, 3)))

    assert_close(np.array(list(shapley_values(MODALITIES, moment.worth).values())), found.values[0])
    assert found.base_values[0] == pytest.approx(moment.worth[0], abs=TOLERANCE)


def test_the_worth_of_every_subset_is_that_of_the_torch_model(moment, of_torch):
    presence = torch.tensor([[float(m in given) for m in MODALITIES] for given in coalitions(MODALITIES)])

    assert_close(moment.worth, of_torch(presence).numpy())


def test_the_map_over_the_picture_is_captums_occlusion(moment, of_torch, tensors):
    stride = picture_stride(HEIGHT, WIDTH)
    assert (stride, WIDTH % stride, HEIGHT % stride) == (3, 1, 2)  # the last cells are cut
    pixels = tensors["image"].float()
    mean = pixels.mean(dim=(0, 1, 2)).round().expand_as(pixels)
    occlusion = Occlusion(lambda image: of_torch(image=image.to(torch.uint8)))

    expected = occlusion.attribute(
        pixels, sliding_window_shapes=(2 * stride, 2 * stride, 3), strides=(stride, stride, 3), baselines=mean
    )[0, :, :, 0].numpy()

    found = image_map(moment)
    assert found.shape == (7, 14)
    assert_close(found.repeat(stride, axis=0).repeat(stride, axis=1)[:HEIGHT, :WIDTH], expected)


def test_the_map_over_the_sound_is_captums_occlusion(moment, of_torch, tensors):
    stride = sound_stride(SAMPLES)
    assert (stride, SAMPLES % stride) == (16, 4)
    occlusion = Occlusion(lambda audio: of_torch(audio=audio))

    expected = occlusion.attribute(
        tensors["audio"], sliding_window_shapes=(2 * stride,), strides=stride, baselines=0.0
    )[0].numpy()

    assert_close(audio_map(moment).repeat(stride)[:SAMPLES], expected)


def test_the_importance_of_words_is_captums_ablation_of_their_pieces(moment, of_torch, tensors):
    #                        [CLS] What is the tri ##angle ? [PAD] ...
    feature = torch.tensor([[5, 0, 1, 2, 3, 3, 4, 5, 5, 5]])
    ablation = FeatureAblation(lambda ids: of_torch(input_ids=ids))

    expected = ablation.attribute(tensors["input_ids"], baselines=PIECES.index("[MASK]"), feature_mask=feature)[0]

    found = word_importance(moment, Tokenizer(tokenizer_document(), TOKENS), "What is the triangle?")
    assert [word for word, _ in found] == ["What", "is", "the", "triangle", "?"]
    assert_close(np.array([importance for _, importance in found]), expected[[1, 2, 3, 4, 6]].numpy())


def test_without_a_mask_token_a_word_is_left_out_of_the_text(moment, of_torch):
    tokenizer = Tokenizer(tokenizer_document(mask=False), TOKENS)
    shorter = ["is the triangle?", "What the triangle?", "What is triangle?", "What is the ?", "What is the triangle"]

    found = word_importance(moment, tokenizer, "What is the triangle?")

    whole = of_torch()
    for (word, importance), text in zip(found, shorter, strict=True):
        ids, mask = map(torch.from_numpy, tokenizer.encode([text]))
        expected = float(whole - of_torch(input_ids=ids, attention_mask=mask))
        assert importance == pytest.approx(expected, abs=TOLERANCE), word


def test_a_word_behind_the_end_has_no_importance_and_the_others_keep_theirs(moment):
    text = "What is the triangle?"
    long = Tokenizer(tokenizer_document(), TOKENS)
    short = Tokenizer(tokenizer_document(), 4)  # [CLS] What is the

    found = word_importance(moment, short, text)

    assert [importance is None for _, importance in found] == [False, False, False, True, True]
    assert found[:3] == word_importance(moment, long, text)[:3]


def test_the_best_label_is_explained_unless_another_is_named(bundle, inputs, of_torch, torch_model, tensors):
    predictor = Predictor(bundle, OnnxBackend(bundle, threads=1))
    with torch.no_grad():
        logits = [float(torch_model.log_odds(tensors, torch.ones(1, 3), label)) for label in range(len(LABELS))]

    best = Moment(predictor, inputs)

    assert best.answer == best.label == int(np.argmax(logits))
    assert Moment(predictor, inputs, LABEL).answer == best.answer
    assert Moment(predictor, inputs, LABEL).worth[-1] == pytest.approx(float(of_torch()), abs=TOLERANCE)


def test_every_run_has_a_batch_of_one_as_a_decision_has(bundle, inputs):
    backend = OnnxBackend(bundle, threads=1)
    rows: dict[str, list[int]] = {part: [] for part in (*MODALITIES, HEAD)}

    def recording(part: str) -> Callable[[Any], Any]:
        def run(tensors: Any) -> Any:
            rows[part] += [len(value) for value in tensors.values()][:1]
            return backend.run(part, tensors)

        return run

    moment = Moment(Predictor(bundle, OpenParts({part: recording(part) for part in rows})), inputs, LABEL)
    assert {part: len(counts) for part, counts in rows.items()} == {"image": 1, "audio": 1, "text": 1, HEAD: 8}
    audio_map(moment)

    assert {count for counts in rows.values() for count in counts} == {1}
    assert (len(rows["image"]), len(rows["audio"])) == (1, 1 + 31)  # the others keep their tokens


def test_logits_that_are_no_numbers_are_refused(bundle, inputs):
    backend = OnnxBackend(bundle, threads=1)
    parts: dict[str, Any] = {m: lambda tensors, m=m: backend.run(m, tensors) for m in MODALITIES}
    parts[HEAD] = lambda tensors: {name: value * np.nan for name, value in backend.run(HEAD, tensors).items()}

    with pytest.raises(BackendError, match="NaN or infinite logits"):
        Moment(Predictor(bundle, OpenParts(parts)), inputs, LABEL)
