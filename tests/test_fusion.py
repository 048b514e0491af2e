"""The fusions: what each computes, and that a missing modality weighs nothing in any of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from edgefuse.train.fusion import FUSIONS, Attention, Concat, Film, Gated, LowRank, Precise, Sum, Weighted

M, DIM, COUNTS = 3, 8, (4, 1, 2)


def fusion_of(kind: str, seed: int = 0) -> nn.Module:
    """A fusion with random weights everywhere."""
    torch.manual_seed(seed)
    fusion = FUSIONS[kind](M, DIM)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.5)
    return fusion.eval()


def tokens_of(batch: int, seed: int = 0) -> list[Tensor]:
    """Random tokens, M times [B, N_m, D]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, count, DIM, generator=generator) for count in COUNTS]


@pytest.mark.parametrize("kind", FUSIONS)
@given(st.lists(st.tuples(*[st.booleans()] * M), min_size=1, max_size=5), st.integers(0, 9))
def test_weights_sum_to_one_over_those_present_and_are_zero_elsewhere(
    kind: str, present: list[tuple[bool, ...]], seed: int
) -> None:
    presence = torch.tensor(present, dtype=torch.float32)
    fused, weights = fusion_of(kind, seed)(tokens_of(len(present), seed), presence)
    assert fused.shape == (len(present), DIM)
    assert weights.shape == presence.shape
    assert weights.min() >= 0
    assert not weights[presence == 0].any()
    torch.testing.assert_close(weights.sum(dim=1), presence.amax(dim=1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", FUSIONS)
def test_each_line_of_a_batch_is_fused_by_itself(kind: str) -> None:
    fusion, tokens = fusion_of(kind), tokens_of(4)
    presence = torch.tensor([[1.0, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0]])
    together = fusion(tokens, presence)
    for row in range(4):
        alone = fusion([token[row : row + 1] for token in tokens], presence[row : row + 1])
        for whole, one in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[row : row + 1], one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in FUSIONS if kind != "sum"])  # which has none
def test_every_parameter_learns(kind: str) -> None:
    fusion = fusion_of(kind)
    fused, _ = fusion(tokens_of(4), torch.ones(4, M))
    fused.square().sum().backward()
    for name, parameter in fusion.named_parameters():
        # The same shift of every key moves every score alike, which a softmax does not see.
        same_shift = (kind, name) in {("attention", "key.bias"), ("attention", "mix.self_attn.in_proj_bias")}
        one_token = kind == "bottleneck" and "read.1.query" in name  # nothing to choose from
        if not same_shift and not one_token:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().amax() > 1e-7, name


def test_concat_is_one_linear_layer_over_the_concatenation() -> None:
    fusion, tokens = fusion_of("concat"), tokens_of(5)
    assert isinstance(fusion, Concat)
    together = torch.cat([token.mean(dim=1) for token in tokens], dim=1)  # [B, M * D]
    expected = F.linear(together, fusion.mix.weight, fusion.mix.bias)
    torch.testing.assert_close(fusion(tokens, torch.ones(5, M))[0], expected, atol=1e-5, rtol=1e-5)


def test_sum_adds_the_means() -> None:
    tokens = tokens_of(5)
    expected = sum(token.numpy().mean(axis=1) for token in tokens)
    np.testing.assert_allclose(Sum(M, DIM)(tokens, torch.ones(5, M))[0].numpy(), expected, atol=1e-5)


def test_low_rank_is_the_product_with_the_full_tensor_of_its_factors() -> None:
    fusion, tokens = fusion_of("low_rank"), tokens_of(3)
    assert isinstance(fusion, LowRank)
    means = [np.concatenate([np.ones((3, 1)), token.numpy().mean(axis=1)], axis=1) for token in tokens]
    factors = [
        np.concatenate([1 + layer.bias.detach().numpy()[:, None], layer.weight.detach().numpy()], axis=1).reshape(
            LowRank.RANK, DIM, 1 + DIM
        )
        for layer in fusion.factor
    ]
    weight = np.einsum("rdi,rdj,rdk->dijk", *factors)  # [D, 1 + D, 1 + D, 1 + D], LMF equation 6
    expected = np.einsum("dijk,bi,bj,bk->bd", weight, *means)
    np.testing.assert_allclose(fusion(tokens, torch.ones(3, M))[0].detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_film_is_the_largest_of_the_cells_scaled_by_what_is_said() -> None:
    fusion, tokens = fusion_of("film"), tokens_of(3)
    assert isinstance(fusion, Film)
    assert COUNTS == (4, 1, 2)  # the second says, the others show
    with torch.no_grad():
        told = [layer(token).numpy() for layer, token in zip(fusion.tell, tokens, strict=True)]
        said = (told[1] - told[1].mean(axis=2, keepdims=True)) / np.sqrt(told[1].var(axis=2, keepdims=True) + 1e-5)
        scaled = np.maximum(np.concatenate([told[0], told[2]], axis=1) * (1 + fusion.REACH * said), 0)  # [B, 6, D]
        found = scaled @ fusion.find.weight.numpy().T + fusion.find.bias.numpy()
        np.testing.assert_allclose(fusion(tokens, torch.ones(3, M))[0], found.max(axis=1), atol=1e-4, rtol=1e-4)


def test_film_of_single_tokens_is_that_of_what_they_say_themselves() -> None:
    fusion, tokens = fusion_of("film"), [torch.randn(2, 1, DIM) for _ in range(M)]
    assert isinstance(fusion, Film)
    told = torch.stack([layer(token[:, 0]) for layer, token in zip(fusion.tell, tokens, strict=True)])  # [M, B, D]
    said = F.layer_norm(told.sum(dim=0), (DIM,))
    expected = fusion.find(F.relu(told * (1 + fusion.REACH * said))).amax(dim=0)
    torch.testing.assert_close(fusion(tokens, torch.ones(2, M))[0], expected, atol=1e-5, rtol=1e-4)


def test_weighted_is_numpys_average_with_the_softmax_of_the_scores() -> None:
    fusion, tokens = fusion_of("weighted"), tokens_of(5)
    assert isinstance(fusion, Weighted)
    score = np.exp(fusion.score.detach().numpy())
    means = np.stack([token.numpy().mean(axis=1) for token in tokens])  # [M, B, D]
    fused, weights = fusion(tokens, torch.ones(5, M))
    np.testing.assert_allclose(fused.detach().numpy(), np.average(means, axis=0, weights=score), atol=1e-5)
    np.testing.assert_allclose(weights[0].detach().numpy(), score / score.sum(), atol=1e-6)
    without_first = fusion(tokens, torch.tensor([[0.0, 1, 1]]).expand(5, -1))[0].detach().numpy()
    np.testing.assert_allclose(without_first, np.average(means[1:], axis=0, weights=score[1:]), atol=1e-5)


def test_the_gate_of_the_gated_fusion_depends_on_the_input() -> None:
    fusion = fusion_of("gated")
    assert isinstance(fusion, Gated)
    weights = fusion(tokens_of(6), torch.ones(6, M))[1]
    assert weights.std(dim=0).min() > 1e-3


def test_a_gated_modality_alone_is_its_transformed_mean() -> None:
    fusion, tokens = fusion_of("gated"), tokens_of(2)
    assert isinstance(fusion, Gated)
    fused, _ = fusion(tokens, torch.tensor([[0.0, 1, 0]]).expand(2, -1))
    torch.testing.assert_close(fused, torch.tanh(fusion.transform[1](tokens[1].mean(dim=1))), atol=1e-6, rtol=1e-5)


def test_the_precise_fusion_is_the_product_of_gaussians_with_a_standard_prior() -> None:
    fusion, tokens = fusion_of("precise"), tokens_of(3)
    assert isinstance(fusion, Precise)
    means, logs = zip(
        *(
            expert(F.gelu(hidden(token.mean(dim=1)))).split([DIM, 1], dim=1)
            for hidden, expert, token in zip(fusion.hidden, fusion.expert, tokens, strict=True)
        ),
        strict=True,
    )
    precision = torch.cat(logs, dim=1).exp()[:, :, None]  # [B, M, 1]
    expected = (precision * torch.stack(means, dim=1)).sum(dim=1) / (1 + precision.sum(dim=1))  # of normal densities
    fused, weights = fusion(tokens, torch.ones(3, M))
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights, (precision / precision.sum(dim=1, keepdim=True))[:, :, 0], atol=1e-5, rtol=1e-4)
    alone = fusion(tokens, torch.tensor([[0.0, 1, 0]]).expand(3, -1))[0]
    torch.testing.assert_close(alone, means[1] * logs[1].sigmoid(), atol=1e-5, rtol=1e-4)


def test_the_weight_of_a_noisy_sensor_falls_and_the_other_one_answers() -> None:
    """Two sensors see one of five classes, each through its own noise, from none to more than all."""
    torch.manual_seed(0)
    patterns = torch.randn(2, 5, 16)
    fusion, classify = Precise(2, 16), nn.Linear(16, 5)
    optimizer = torch.optim.Adam([*fusion.parameters(), *classify.parameters()], lr=5e-3)

    def sensors(noise: Tensor) -> tuple[list[Tensor], Tensor]:
        label = torch.randint(5, (len(noise),))
        seen = patterns[:, label] + torch.randn(2, len(noise), 16) * noise.T[:, :, None]
        return [token[:, None] for token in F.layer_norm(seen, (16,))], label  # as the head's projection does

    for _ in range(300):
        tokens, label = sensors(4 * torch.rand(128, 2) ** 2)
        loss = F.cross_entropy(classify(fusion(tokens, torch.ones(128, 2))[0]), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    told = {}
    for level in (0.0, 4.0):
        tokens, label = sensors(torch.tensor([[level, 0.2]]).expand(1000, -1))
        fused, weights = fusion(tokens, torch.ones(1000, 2))
        told[level] = float(weights[:, 0].detach().mean())
        assert (classify(fused).argmax(dim=1) == label).float().mean() > 0.97
    assert told[4.0] < told[0.0] - 0.1


def test_the_read_out_of_attention_is_torchs_scaled_dot_product() -> None:
    fusion, tokens = fusion_of("attention"), tokens_of(3)
    assert isinstance(fusion, Attention)
    presence = torch.tensor([[1.0, 0, 1]]).expand(3, -1)
    named = [token + kind for token, kind in zip(tokens, fusion.kind, strict=True)]
    mixed = fusion.norm(fusion.mix(torch.cat(named, dim=1)))  # [B, N, D]
    readable = torch.repeat_interleave(presence.bool(), torch.tensor(COUNTS), dim=1)  # [B, N]
    expected = F.scaled_dot_product_attention(
        fusion.query.expand(3, 1, -1), fusion.key(mixed), fusion.value(mixed), attn_mask=readable[:, None]
    )
    torch.testing.assert_close(fusion(tokens, presence)[0], expected[:, 0], atol=1e-5, rtol=1e-4)


def test_attention_tells_the_modalities_apart() -> None:
    fusion = fusion_of("attention")
    same = [torch.ones(1, 2, DIM)] * M
    weights = fusion(same, torch.ones(1, M))[1]
    assert weights.std() > 1e-3
