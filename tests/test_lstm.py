import pytest
import torch

from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.spec import LstmNetwork

FACTS = DataFacts(num_classes=50, shape=(24,))


@pytest.mark.parametrize("depth", [1, 2])
def test_an_lstm_predicts_each_id_from_all_those_before_it_alone(depth: int) -> None:
    torch.manual_seed(0)
    network = build_network(LstmNetwork(name="lstm", width=16, depth=depth), FACTS, "").eval()
    tokens = torch.randint(50, (3, 24), dtype=torch.uint8)

    logits = network(tokens)

    assert logits.shape == (3, 24, 50)
    assert torch.equal(logits, network(tokens.long()))
    for position in (0, 7, 22):
        changed = tokens.clone()
        changed[:, position] = (tokens[:, position] + 1) % 50
        others = network(changed)
        torch.testing.assert_close(others[:, : position + 1], logits[:, : position + 1])
        is_other = (others[:, position + 1 :] != logits[:, position + 1 :]).any(-1)
        assert is_other.all()


def test_a_block_is_predicted_alike_whatever_other_blocks_are_beside_it() -> None:
    torch.manual_seed(0)
    network = build_network(LstmNetwork(name="lstm", width=16), FACTS, "").eval()
    tokens = torch.randint(50, (3, 24))

    torch.testing.assert_close(network(tokens)[1:2], network(tokens[1:2]))
