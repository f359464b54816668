import numpy as np
import pytest

from millrace import manifest as manifests
from millrace.answers.classification import classify
from millrace.data.columns import Ragged
from millrace.data.images import decoded, pixels
from millrace.data.samples import Samples
from millrace.data.splits import SPLITS
from millrace.data.stream import Stream
from millrace.manifest import Manifest
from millrace.released import Released
from tests.pipelines_for_tests import NAME, Line, build_images


@pytest.fixture(scope="module", params=["pixels", "coded"])
def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Line:
    return build_images(tmp_path_factory.mktemp(request.param), request.param)


def current(line: Line, noun: str) -> Manifest:
    return manifests.current(line.storage, NAME, noun)


def stored_pixels(line: Line, split: str) -> dict[int, bytes]:
    """Record id to the pixels that a reader is given."""
    samples = Samples(line.storage, current(line, "shards"), split)
    return {
        int(record): image.tobytes()
        for batch in decoded(samples.batches(7), samples.fields)
        for image, record in zip(batch["inputs"], batch["record"], strict=True)
    }


def test_what_is_stored_are_the_images_of_the_source(line: Line) -> None:
    found = [image for split in SPLITS for image in stored_pixels(line, split).values()]

    files = (line.root / "source").rglob("*.png")
    expected = [pixels(file.read_bytes(), (3, 8, 8)).tobytes() for file in files]
    assert sorted(found) == sorted(expected)


def test_mean_and_deviation_are_those_of_the_train_pixels(line: Line) -> None:
    facts = current(line, "shards").facts

    images = b"".join(stored_pixels(line, "train").values())
    train = np.frombuffer(images, np.uint8).reshape(-1, 3, 64).astype(np.float64)

    assert facts["mean"] == pytest.approx(train.mean((0, 2)))
    assert facts["deviation"] == pytest.approx(train.std((0, 2)))


def test_frames_hold_images_as_the_spec_says_and_a_stream_gives_pixels(line: Line) -> None:
    samples = Samples(line.storage, current(line, "shards"), "train")
    stream = Stream(samples, 16, seed=0)

    frame, batch = samples.frame(0)["inputs"], next(stream)["inputs"]
    stream.close()

    is_coded = line.job().spec.task.model_dump()["images"] == "coded"
    assert isinstance(frame, Ragged) == is_coded
    assert (batch.dtype, batch.shape) == (np.uint8, (16, 3, 8, 8))


def test_a_pipeline_of_images_is_trained_evaluated_released_and_asked(line: Line) -> None:
    for verb, noun in (("train", "checkpoint"), ("evaluate", "evaluation"), ("release", "release")):
        line.run(verb, line.job(noun))

    released = Released(str(line.root / "store"), NAME, line.root / "source")
    assert current(line, "evaluation").facts["estimate"]["low"] > 0.9
    for label in ("bright", "dark"):
        image = (line.root / "source" / label / "3.png").read_bytes()
        assert next(iter(classify(released, {"image": image}))) == label
