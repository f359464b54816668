import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from millrace.errors import SpecError
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.models.source import source_digest
from millrace.spec import ConvNetwork, CustomNetwork, MlpNetwork

IMAGES = DataFacts(num_classes=5, shape=(3, 9, 2), mean=(10.0,) * 3, deviation=(4.0,) * 3)


@pytest.mark.parametrize(
    "spec", [ConvNetwork(name="conv", width=4), MlpNetwork(name="mlp", width=4, depth=2)]
)
def test_a_classifier_gives_a_score_per_class_and_standardizes_its_inputs(
    spec: ConvNetwork | MlpNetwork,
) -> None:
    torch.manual_seed(0)
    network = build_network(spec, IMAGES, "").eval()
    inputs = torch.randn(7, *IMAGES.shape) * 4 + 10

    scores = network(inputs)

    assert scores.shape == (7, 5)
    torch.manual_seed(0)
    plain = build_network(spec, DataFacts(5, IMAGES.shape, (0.0,) * 3, (1.0,) * 3), "").eval()
    torch.testing.assert_close(scores, plain((inputs - 10) / 4))


def test_the_same_random_state_gives_the_same_weights() -> None:
    spec = MlpNetwork(name="mlp", width=4)
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(next(build_network(spec, IMAGES, "").parameters()))

    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_facts_are_read_from_a_shards_manifest() -> None:
    text: dict[str, Any] = {"fields": {"tokens": ["uint8", [64]]}}
    image = {
        "fields": {"inputs": ["float32", [1, 8, 8]]},
        "classes": ["a", "b"],
        "mean": [3.0],
        "deviation": [2.0],
    }

    assert DataFacts.from_manifest(text) == DataFacts(256, (64,))
    assert DataFacts.from_manifest(text | {"vocabulary": 300}) == DataFacts(300, (64,))
    assert DataFacts.from_manifest(image) == DataFacts(2, (1, 8, 8), (3.0,), (2.0,))


def test_a_file_that_failed_to_load_is_loaded_anew_once_mended(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\nclass Net(nn.Linear): pass\nraise OSError('half done')\n"
    )
    spec = CustomNetwork.model_validate({"name": "mine.py:Net"})
    with pytest.raises(OSError, match="half done"):
        build_network(spec, IMAGES, str(tmp_path))
    path.write_text(
        "from torch import nn\nclass Net(nn.Linear):\n"
        "    def __init__(self, facts): super().__init__(3, facts.num_classes)\n"
    )

    network = build_network(spec, IMAGES, str(tmp_path))

    assert network(torch.zeros(1, 3)).shape == (1, 5)


def test_the_digest_of_code_is_that_of_the_users_file_and_empty_for_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(b"x = 1\n")
    custom = CustomNetwork.model_validate({"name": "mine.py:Net"})
    missing = CustomNetwork.model_validate({"name": "yours.py:Net"})

    assert source_digest(custom, str(tmp_path)) == hashlib.sha256(b"x = 1\n").hexdigest()
    assert source_digest(MlpNetwork(name="mlp"), str(tmp_path)) == ""
    with pytest.raises(SpecError, match=r"yours\.py does not exist"):
        source_digest(missing, str(tmp_path))
