"""The attention bottleneck: what a read is, and that the question decides what is read of the picture."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from edgefuse.train.bottleneck import Bottleneck, Read

DIM = 16


def test_a_read_is_torchs_multi_head_attention_with_k_and_v_absorbed() -> None:
    """q_h (K_h x) = (K_h^T q_h) x, and O_h (V_h sum x) = (O_h V_h) sum x; the biases of K and V are left out."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(DIM, Read.HEADS, bias=False, batch_first=True)
    query, key, value = (part.view(Read.HEADS, -1, DIM) for part in theirs.in_proj_weight.chunk(3))  # [H, d, D]
    out = theirs.out_proj.weight.view(DIM, Read.HEADS, -1)  # [D, H, d]
    ours = Read(DIM)
    with torch.no_grad():
        scale = (DIM / query.shape[1]) ** 0.5  # we divide by the root of D, they by that of d
        ours.query.weight.copy_(torch.einsum("hdi,hdj->hji", query, key).flatten(0, 1) * scale)
        ours.out.weight.copy_(torch.einsum("ohd,hdj->ohj", out, value).flatten(1))
        nn.init.zeros_(ours.query.bias)
        nn.init.zeros_(ours.out.bias)
    state, tokens = torch.randn(3, 2, DIM), torch.randn(3, 7, DIM)
    torch.testing.assert_close(ours(state, tokens), theirs(state, tokens, tokens)[0], atol=1e-5, rtol=1e-4)


def test_the_order_of_a_modalitys_tokens_does_not_matter() -> None:
    torch.manual_seed(0)
    fusion = Bottleneck(2, DIM).eval()
    first, second, presence = torch.randn(3, 5, DIM), torch.randn(3, 2, DIM), torch.ones(3, 2)
    expected = fusion([first, second], presence)[0]
    torch.testing.assert_close(fusion([first.flip(1), second.flip(1)], presence)[0], expected, atol=1e-5, rtol=1e-4)


def test_a_missing_modality_steers_nothing() -> None:
    torch.manual_seed(0)
    fusion = Bottleneck(2, DIM).eval()
    first, presence = torch.randn(3, 5, DIM), torch.tensor([[1.0, 0]]).expand(3, -1)
    fused = [fusion([first, torch.randn(3, 1, DIM)], presence)[0] for _ in range(2)]
    assert torch.equal(*fused)


def test_it_learns_to_read_the_cell_that_the_question_names() -> None:
    """Each of four cells has a name and a value; the value of the named one has to be told. Any mean of cells fails."""
    torch.manual_seed(0)
    names, values, questions = (torch.randn(4, DIM) for _ in range(3))
    fusion, classify = Bottleneck(2, DIM), nn.Linear(DIM, 4)
    optimizer = torch.optim.Adam([*fusion.parameters(), *classify.parameters()], lr=5e-3)

    def told(lines: int) -> tuple[torch.Tensor, torch.Tensor]:
        value, asked = torch.randint(4, (lines, 4)), torch.randint(4, (lines,))
        cells = names + values[value]  # [B, 4, D]
        logits = classify(fusion([cells, questions[asked][:, None]], torch.ones(lines, 2))[0])
        return logits, value[torch.arange(lines), asked]

    for _ in range(250):
        logits, labels = told(64)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    logits, labels = told(500)
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.9  # by chance 0.25; a mean over cells gets about 0.5
