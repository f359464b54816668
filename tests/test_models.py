import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from millrace.errors import SpecError
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.models.source import source_digest
from millrace.spec import ConvNetwork, CustomNetwork, MlpNetwork, VitNetwork

IMAGES = DataFacts(num_classes=5, shape=(3, 9, 2), mean=(10.0,) * 3, deviation=(4.0,) * 3)


@pytest.mark.parametrize(
    "spec",
    [
        ConvNetwork(name="conv", width=4),
        VitNetwork(name="vit", width=8, depth=2),
        MlpNetwork(name="mlp", width=4, depth=2),
    ],
)
def test_a_classifier_gives_a_score_per_class_and_standardizes_its_inputs(
    spec: ConvNetwork | VitNetwork | MlpNetwork,
) -> None:
    torch.manual_seed(0)
    network = build_network(spec, IMAGES, "").eval()
    inputs = torch.randn(7, *IMAGES.shape) * 4 + 10

    scores = network(inputs)

    assert scores.shape == (7, 5)
    torch.manual_seed(0)
    plain = build_network(spec, DataFacts(5, IMAGES.shape, (0.0,) * 3, (1.0,) * 3), "").eval()
    torch.testing.assert_close(scores, plain((inputs - 10) / 4))


@pytest.mark.parametrize("side", [1, 5, 8, 28, 224])
def test_convolutions_halve_an_image_of_any_size_to_at_most_seven_pixels(side: int) -> None:
    facts = DataFacts(num_classes=5, shape=(1, side, side + 1), mean=(0.0,), deviation=(1.0,))
    network = build_network(ConvNetwork(name="conv", width=2), facts, "").eval()
    inputs = torch.randn(2, *facts.shape)

    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    pooled = torch.nn.Sequential(*next(network.children()).children())[:-2](inputs)

    assert network(inputs).shape == (2, 5)
    assert pooled.shape[2] == side // 2 ** (len(convolutions) - 1) or side < 8
    assert pooled.shape[2] < 8
    assert [layer.out_channels for layer in convolutions] == [
        min(2 * 2**i, 16) for i in range(len(convolutions))
    ]


@pytest.mark.parametrize(("shape", "patches"), [((8, 8), 64), ((28, 28), 49), ((30, 7), 60)])
def test_a_vision_transformer_takes_the_smallest_patches_of_which_64_cover_an_image(
    shape: tuple[int, int], patches: int
) -> None:
    facts = DataFacts(num_classes=5, shape=(3, *shape), mean=(0.0,) * 3, deviation=(1.0,) * 3)
    network = build_network(VitNetwork(name="vit", width=8, depth=1), facts, "")
    wide = build_network(VitNetwork(name="vit", width=8, depth=1, patch=50), facts, "")

    assert network.get_parameter("place.weight").shape == (patches, 8)
    assert wide.get_parameter("place.weight").shape == (1, 8)


def test_a_vision_transformer_tells_places_apart_and_sees_every_pixel() -> None:
    torch.manual_seed(0)
    facts = DataFacts(num_classes=2, shape=(1, 13, 13), mean=(0.0,), deviation=(1.0,))
    network = build_network(VitNetwork(name="vit", width=8, depth=2, patch=4), facts, "").eval()
    for parameter in network.parameters():  # fresh blocks add nothing
        nn.init.normal_(parameter, std=0.2)
    image = torch.randn(1, 1, 13, 13, requires_grad=True)

    network(image)[0, 0].backward()

    assert image.grad is not None
    assert (image.grad != 0).all()
    with torch.inference_mode():
        swapped = torch.cat([image[..., 4:8, :], image[..., :4, :], image[..., 8:, :]], dim=2)
        assert not torch.allclose(network(image), network(swapped), atol=1e-4)


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

    assert DataFacts.from_manifest(text) == DataFacts(256, (64,), is_per_position=True)
    assert DataFacts.from_manifest(text | {"vocabulary": 300}) == DataFacts(
        300, (64,), is_per_position=True
    )
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
