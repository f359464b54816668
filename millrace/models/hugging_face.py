"""Models of the Hugging Face hub, or of a local folder, as networks of ours.

    ids before a position --> causal language model --> logits
    texts as bytes        --> the model's own tokenizer --> sequence classifier --> logits

Only safetensors are read, never a pickle, and never code of the model's own.
Shape suffixes: B batch, T positions, V vocabulary, K classes.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from millrace.errors import SpecError
from millrace.models.facts import DataFacts
from millrace.models.source import model_folder
from millrace.spec import HuggingFaceNetwork


def build_hugging_face(spec: HuggingFaceNetwork, facts: DataFacts, folder: str) -> nn.Module:
    """A causal language model where each position is predicted, else a sequence classifier.

    What the checkpoint lacks (a classifier's last layer) is drawn from torch's random state.

    Args:
        spec: Which model.
        facts: Of the data.
        folder: The pipeline's folder, where a local model's folder is looked for.

    Raises:
        SpecError: There is no such model here or on the hub, it needs a pickle or code of its own,
            or it does not fit the data.
    """
    if facts.is_per_position:
        model = _load(spec, folder, "AutoModelForCausalLM", {})
        _refuse_small(spec, model.config, facts)
        return HuggingFaceLanguageModel(model, facts.num_classes)
    model = _load(
        spec, folder, "AutoModelForSequenceClassification", {"num_labels": facts.num_classes}
    )
    return HuggingFaceClassifier(model, _call(spec, folder, "AutoTokenizer", "from_pretrained", {}))


class HuggingFaceModel(nn.Module):
    """A model whose tied weights are saved once: safetensors hold no tensor twice."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        same: dict[int, list[str]] = defaultdict(list)
        for name, parameter in self.named_parameters(remove_duplicate=False):
            same[id(parameter)].append(name)
        self._first_of = {name: names[0] for names in same.values() for name in names[1:]}
        self.register_state_dict_post_hook(_without_tied)  # type: ignore[no-untyped-call]  # torch leaves it so
        self.register_load_state_dict_pre_hook(_with_tied)  # type: ignore[no-untyped-call]  # torch leaves it so

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers that are alike, which sharding and recomputation wrap one by one."""
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=len, default=nn.ModuleList())


class HuggingFaceLanguageModel(HuggingFaceModel):
    """Logits of each id of a block from the ids before it in the block."""

    def __init__(self, model: Any, num_ids: int) -> None:
        super().__init__(model)
        config = model.config
        begins = (config.bos_token_id, config.eos_token_id, 0)
        self._begin = next(each for each in begins if isinstance(each, int))
        self._num_ids = num_ids

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V): those at position t depend on the ids before t alone."""
        before_BT = tokens_BT.long().roll(1, dims=1)
        before_BT[:, 0] = self._begin
        logits_BTV: Tensor = self.model(input_ids=before_BT, use_cache=False).logits
        return logits_BTV[..., : self._num_ids]


class HuggingFaceClassifier(HuggingFaceModel):
    """Class logits of texts, which the model's own tokenizer cuts into tokens, on the CPU."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model)
        self._tokenizer = tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        self._most_tokens = int(getattr(model.config, "max_position_embeddings", 512))

    def forward(self, text_BT: Tensor) -> Tensor:
        """Logits (B, K) of texts as bytes (B, T), each filled up with zeros; too long ones cut."""
        rows_BT = text_BT.cpu().numpy()
        texts = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows_BT]
        encoded = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._most_tokens, return_tensors="pt"
        )
        logits_BK: Tensor = self.model(
            input_ids=encoded["input_ids"].to(text_BT.device),
            attention_mask=encoded["attention_mask"].to(text_BT.device),
        ).logits
        return logits_BK


def _without_tied(
    module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Mapping[str, Any]
) -> None:
    assert isinstance(module, HuggingFaceModel), "the hook is of this class"
    for name in module._first_of:
        state.pop(prefix + name, None)


def _with_tied(module: nn.Module, state: dict[str, Any], prefix: str, *_others: Any) -> None:
    assert isinstance(module, HuggingFaceModel), "the hook is of this class"
    for name, first in module._first_of.items():
        if prefix + first in state:
            state.setdefault(prefix + name, state[prefix + first])


def _load(spec: HuggingFaceNetwork, folder: str, kind: str, options: Mapping[str, object]) -> Any:
    if not spec.pretrained:
        config = _call(spec, folder, "AutoConfig", "from_pretrained", options)
        return _call(spec, folder, kind, "from_config", {"config": config})
    if (local := model_folder(spec, folder)) and not list(local.glob("*.safetensors")):
        raise _unusable(spec, f"{local} holds no *.safetensors, and no pickle (*.bin) is ever read")
    given = {"use_safetensors": True, "dtype": torch.float32}
    return _call(spec, folder, kind, "from_pretrained", {**given, **options})


def _call(
    spec: HuggingFaceNetwork,
    folder: str,
    kind: str,
    method: str,
    options: Mapping[str, object],
) -> Any:
    """`transformers.KIND.METHOD` of the model, whatever goes wrong told in three parts."""
    try:
        import transformers  # noqa: PLC0415  an extra, and it takes seconds
    except ImportError as error:
        raise SpecError(
            f"load the network {spec.name}",
            str(error),
            "Install it: pip install 'millrace[transformers]'",
        ) from error
    make: Callable[..., Any] = getattr(getattr(transformers, kind), method)
    if method == "from_config":
        return make(**options, trust_remote_code=False)
    local = model_folder(spec, folder)
    where = {} if local else {"revision": spec.revision}
    try:
        return make(str(local or spec.place), trust_remote_code=False, **where, **options)
    except (OSError, ValueError) as error:  # what transformers raises for all of these
        raise _unusable(spec, " ".join(str(error).split())) from error


def _unusable(spec: HuggingFaceNetwork, found: str) -> SpecError:
    return SpecError(
        f"load the network {spec.name}",
        found,
        "Name a folder beside the pipeline's defs.yaml, or a model that the hub has, with "
        "safetensors and without code of its own; offline it must have been fetched before",
    )


def _refuse_small(spec: HuggingFaceNetwork, config: Any, facts: DataFacts) -> None:
    """Refuse a model that has fewer ids, or positions, than the data."""
    most = getattr(config, "max_position_embeddings", facts.shape[0])
    if config.vocab_size < facts.num_classes or most < facts.shape[0]:
        raise SpecError(
            f"train the network {spec.name} on blocks of {facts.shape[0]} of {facts.num_classes} "
            "ids",
            f"it has {most} positions and {config.vocab_size} ids",
            "Shorten `task.block_tokens` (`block_bytes`), or take the model's own tokenizer",
        )
