"""Build the network a spec names: one of ours, the user's own class, or one of Hugging Face's."""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from millrace.errors import SpecError
from millrace.frozen import unknown_key
from millrace.models.conv import ConvNet
from millrace.models.encoder import Encoder
from millrace.models.facts import DataFacts
from millrace.models.gpt import Gpt
from millrace.models.hugging_face import build_hugging_face
from millrace.models.lstm import Lstm
from millrace.models.mlp import Mlp
from millrace.models.motif_conv import MotifConv
from millrace.models.ngram_copy import NgramCopy
from millrace.models.qaoa import Qaoa
from millrace.models.source import source_path
from millrace.models.vit import VisionTransformer
from millrace.spec import CustomNetwork, HuggingFaceNetwork, Network

_BUILT_IN: dict[str, type[nn.Module]] = {
    "ngram_copy": NgramCopy,
    "gpt": Gpt,
    "lstm": Lstm,
    "conv": ConvNet,
    "vit": VisionTransformer,
    "mlp": Mlp,
    "encoder": Encoder,
    "motif_conv": MotifConv,
    "qaoa": Qaoa,
}


def build_network(spec: Network, facts: DataFacts, folder: str) -> nn.Module:
    """The network with fresh weights from torch's current random state.

    Args:
        spec: Its name and fields.
        facts: Of the data it is for.
        folder: The pipeline's folder, where `file.py:Class` is looked for.

    Raises:
        SpecError: The user's file, class or a key of hers does not exist.
    """
    if isinstance(spec, HuggingFaceNetwork):
        return build_hugging_face(spec, facts, folder)
    values = spec.model_dump(exclude={"name"})
    if not isinstance(spec, CustomNetwork):
        return _BUILT_IN[spec.name](facts, **values)
    kind = _load_class(spec, folder)
    _refuse_unknown(spec.name, kind, values)
    network: nn.Module = kind(facts, **values)
    return network


def _load_class(spec: CustomNetwork, folder: str) -> type[nn.Module]:
    path, class_name = source_path(spec, folder), spec.name.partition(":")[2]
    module = _load_module(path)
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        found = sorted(
            key for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, nn.Module)
        )  # fmt: skip
        raise SpecError(
            f"load the network {spec.name}",
            f"{path} has no torch.nn.Module `{class_name}`",
            f"It has: {', '.join(found) or 'none'}",
        )
    return kind


def _load_module(path: Path) -> ModuleType:
    """Import a file by its path, under a name that no other file can take."""
    name = f"millrace_network_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, f"{path} is a Python file"
    assert spec.loader is not None, f"{path} is a Python file"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half of a module must not answer the next import
        raise
    return module


def _refuse_unknown(name: str, kind: type[nn.Module], values: Mapping[str, Any]) -> None:
    parameters = inspect.signature(kind.__init__).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known: Sequence[str] = [parameter.name for parameter in parameters][2:]  # self, facts
    for key in values:
        if key not in known:
            raise SpecError(
                f"build the network {name}", unknown_key(key, known), "Correct `network`"
            )
