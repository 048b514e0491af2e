"""The Conformer's modules against torch's attention and torchaudio's own Conformer, with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchaudio.models.conformer import ConformerLayer as TorchaudioLayer

from edgefuse.train.conformer import ConformerLayer, Convolution, FeedForward, SelfAttention
from edgefuse.train.encoders import AUDIO_ENCODERS

DIM, HEADS, HIDDEN, KERNEL = 24, 3, 40, 7


def settled(module: nn.Module) -> nn.Module:
    """The module with every weight, norm and statistic drawn at random, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0, generator=generator)
            elif value.is_floating_point():
                value.normal_(0.0, 0.3, generator=generator)
    return module.eval()


def frames(count: int = 11, dim: int = DIM) -> Tensor:
    return torch.randn(2, count, dim, generator=torch.Generator().manual_seed(1))


def copy_weights(pairs: list[tuple[nn.Module, nn.Module]]) -> None:
    """Give each second module the weights of the first; a pointwise convolution takes those of a Linear layer."""
    for source, target in pairs:
        shapes = {name: value.shape for name, value in target.state_dict().items()}
        target.load_state_dict({name: value.reshape(shapes[name]) for name, value in source.state_dict().items()})


def test_attention_is_torchs_multi_head_attention_behind_a_norm() -> None:
    ours = settled(SelfAttention(DIM, HEADS, dropout=0.1))
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        copy_weights([(ours.out, theirs.out_proj)])
        normed = ours.norm(frames())
        torch.testing.assert_close(ours(frames()), theirs(normed, normed, normed)[0], atol=1e-5, rtol=1e-5)


def test_the_convolution_is_torchaudios() -> None:
    ours = settled(Convolution(DIM, KERNEL, dropout=0.1))
    theirs = TorchaudioLayer(DIM, HIDDEN, HEADS, KERNEL).conv_module.eval()
    gate, _, depthwise, batch_norm, _, out, _ = theirs.sequential
    copy_weights(
        [
            (ours.norm, theirs.layer_norm),
            (ours.gate, gate),
            (ours.depthwise, depthwise),
            (ours.batch_norm, batch_norm),
            (ours.out, out),
        ]
    )
    with torch.no_grad():
        torch.testing.assert_close(ours(frames()), theirs(frames()), atol=1e-5, rtol=1e-5)


def test_the_feed_forward_pair_is_torchaudios() -> None:
    ours = settled(FeedForward(DIM, HIDDEN, dropout=0.1))
    theirs = TorchaudioLayer(DIM, HIDDEN, HEADS, KERNEL).ffn1.eval()
    copy_weights([(ours, theirs.sequential)])
    with torch.no_grad():
        torch.testing.assert_close(ours(frames()), theirs(frames()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_a_layer_keeps_every_frame(count: int) -> None:
    layer = settled(ConformerLayer(DIM, HIDDEN, HEADS, KERNEL, dropout=0.1))
    with torch.no_grad():
        assert layer(frames(count)).shape == (2, count, DIM)


def test_each_module_is_added_to_what_it_reads() -> None:
    """With its last product silenced a module says nothing, and the frames pass on as they are."""
    layer = settled(ConformerLayer(DIM, HIDDEN, HEADS, KERNEL, dropout=0.1))
    last = {"attention": layer.attention.out, "convolution": layer.convolution.out, "feed": layer.feed_forward[4]}
    with torch.no_grad():
        whole = layer(frames())
        for product in last.values():
            kept = [parameter.clone() for parameter in product.parameters()]
            for parameter in product.parameters():
                parameter.zero_()
            assert not torch.allclose(layer(frames()), whole, atol=1e-3)  # it had something to say
            for parameter, value in zip(product.parameters(), kept, strict=True):
                parameter.copy_(value)
        for product in last.values():
            for parameter in product.parameters():
                parameter.zero_()
        assert torch.equal(layer(frames()), frames())


def test_a_frame_hears_its_neighbours_by_the_convolution_and_all_by_the_attention() -> None:
    changed = frames(21)
    changed[:, 10].neg_()  # LayerNorm would not see a shift
    for module, reach in ((Convolution(DIM, KERNEL, 0.0), KERNEL // 2), (SelfAttention(DIM, HEADS, 0.0), 10)):
        settled(module)
        with torch.no_grad():
            moved = (module(changed) - module(frames(21))).abs().amax(dim=(0, 2)) > 1e-7
        assert moved.nonzero().flatten().tolist() == list(range(10 - reach, 11 + reach))


def test_dropout_is_of_training_only() -> None:
    layer = settled(ConformerLayer(DIM, HIDDEN, HEADS, KERNEL, dropout=0.5))
    with torch.no_grad():
        assert torch.equal(layer(frames()), layer(frames()))
        for module in (layer.attention, layer.convolution, layer.feed_forward):
            module.train()
            assert not torch.equal(module(frames()), module(frames()))


def test_attention_drops_shares_too() -> None:
    attention = settled(SelfAttention(DIM, HEADS, dropout=0.5)).train()
    attention.dropout.eval()  # the one behind it
    with torch.no_grad():
        assert not torch.equal(attention(frames()), attention(frames()))


@pytest.mark.parametrize("name", [name for name, row in AUDIO_ENCODERS.items() if "heads" in row])
def test_heads_of_the_table_need_no_padding_and_kernels_are_odd(name: str) -> None:
    row = AUDIO_ENCODERS[name]
    assert row["dim"] % row["heads"] == 0
    assert row["dim"] // row["heads"] % 8 == 0
    assert row["kernel"] % 2 == 1
