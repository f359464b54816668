import pytest
import torch
import torch.nn.functional as F

from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.models.gpt import Gpt
from millrace.spec import GptNetwork

FACTS = DataFacts(num_classes=50, shape=(24,))


def _warmed_up(spec: GptNetwork) -> torch.nn.Module:
    """A network whose every weight matters: fresh ones are zero where the blocks end."""
    torch.manual_seed(0)
    network = build_network(spec, FACTS, "").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return network


@pytest.mark.parametrize(
    "spec",
    [
        GptNetwork(name="gpt", width=32, depth=2),
        GptNetwork(name="gpt", width=32, depth=2, heads=4, tied=True),
        GptNetwork(name="gpt", width=32, depth=2, ngram_bits=8),
    ],
    ids=["plain", "tied", "n-grams"],
)
def test_a_gpt_predicts_each_id_from_those_before_it_alone(spec: GptNetwork) -> None:
    network = _warmed_up(spec)
    tokens = torch.randint(50, (3, 24))

    logits = network(tokens)

    assert logits.shape == (3, 24, 50)
    for position in (0, 7, 23):
        changed = tokens.clone()
        changed[:, position:] = torch.randint(50, (3, 24 - position))
        changed[:, position] = (tokens[:, position] + 1) % 50
        others = network(changed)
        torch.testing.assert_close(others[:, : position + 1], logits[:, : position + 1])
        if position < 23:
            assert not torch.allclose(others[:, position + 1], logits[:, position + 1])


def test_a_gpt_reads_bytes_and_says_the_same_of_them_as_of_wider_ids() -> None:
    network = _warmed_up(GptNetwork(name="gpt", width=32, depth=1, ngram_bits=8))
    tokens = torch.randint(50, (2, 9), dtype=torch.uint8)

    assert torch.equal(network(tokens), network(tokens.long()))


def test_a_fresh_gpt_says_that_every_id_is_as_likely() -> None:
    network = build_network(GptNetwork(name="gpt"), FACTS, "").eval()

    assert (network(torch.randint(50, (2, 24))) == 0).all()


def test_a_gpt_learns_to_copy_what_it_saw() -> None:
    torch.manual_seed(0)
    network = Gpt(FACTS, width=32, depth=2, heads=0, dropout=0.0, tied=False, ngram_bits=0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(150):
        half = torch.randint(50, (16, 12))
        tokens = torch.cat([half, half], dim=1)
        loss = F.cross_entropy(network(tokens)[:, 13:].flatten(0, 1), tokens[:, 13:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        optimizer.step()

    assert loss.item() < 1.0  # knowing nothing: 3.9


def test_a_gpt_needs_a_width_that_its_heads_share_evenly() -> None:
    with pytest.raises(ValueError, match=r"width \(30\) must be a multiple of heads \(4\)"):
        GptNetwork(name="gpt", width=30, heads=4)
    with pytest.raises(ValueError, match="a head needs an even number of channels, not 3"):
        GptNetwork(name="gpt", width=12, heads=4)
