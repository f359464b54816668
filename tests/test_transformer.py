import pytest
import torch

from millrace.models.transformer import Block, rotary

CPU = torch.device("cpu")


def _block(*, is_causal: bool) -> Block:
    torch.manual_seed(0)
    block = Block(16, 2, 0.0, is_causal=is_causal).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return block


def test_a_fresh_block_hands_on_what_came_in() -> None:
    x = torch.randn(2, 5, 16)

    assert torch.equal(Block(16, 2, 0.5, is_causal=False)(x), x)


@pytest.mark.parametrize("is_causal", [True, False])
def test_padding_changes_nothing_at_the_positions_before_it(is_causal: bool) -> None:
    block = _block(is_causal=is_causal)
    x = torch.randn(2, 5, 16)
    padded = torch.cat([x, torch.randn(2, 3, 16)], dim=1)
    is_real = torch.arange(8).expand(2, 8) < 5

    found = block(padded, rotary(8, 8, CPU), is_real)

    torch.testing.assert_close(found[:, :5], block(x, rotary(5, 8, CPU)))
    assert found.isfinite().all()


def test_a_block_that_is_not_causal_sees_what_comes_later() -> None:
    x = torch.randn(1, 5, 16)
    changed = x.clone()
    changed[:, 4] = torch.randn(16)

    causal, other = _block(is_causal=True), _block(is_causal=False)

    torch.testing.assert_close(causal(changed)[:, :4], causal(x)[:, :4])
    assert not torch.allclose(other(changed)[:, 0], other(x)[:, 0])


def test_with_rotary_positions_only_distances_count() -> None:
    cos, sin = rotary(9, 8, CPU)
    block = _block(is_causal=True)
    x = torch.randn(1, 5, 16)

    moved = block(x, (cos[4:], sin[4:]))

    torch.testing.assert_close(moved, block(x, (cos[:5], sin[:5])))
    assert not torch.allclose(moved, block(x))
