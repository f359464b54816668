"""One contestant trains the same small GPT and tells its tokens per second.

    python -m benchmarks.peers.step NAME FOLDER WARM_UP STEPS    alone, or under torchrun

FOLDER holds tokens.npy (blocks in memory order), case.json, and job.json for ours.
"""

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.gpt import GPT
from millrace.models.facts import DataFacts

RATE, CLIP = 3e-4, 1.0
LOG_EVERY = 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Case:
    """The work, the same for all, and the clock of whoever does it."""

    def __init__(self, folder: Path, warm_up: int, steps: int) -> None:
        told = json.loads((folder / "case.json").read_text())
        self.folder, self.warm_up, self.steps = folder, warm_up, warm_up + steps
        self.share: int = told["batch"] // WORLD_SIZE
        self.vocabulary: int = told["vocabulary"]
        self.block: int = told["block"]
        self.network: Mapping[str, Any] = told["network"]
        self.is_bfloat16 = self.is_compiled = DEVICE == "cuda"
        self._marks: list[tuple[float, float]] = []

    def tokens(self) -> Tensor:
        """All blocks, (samples, block) int64."""
        return torch.from_numpy(np.load(self.folder / "tokens.npy").astype(np.int64))

    def build(self) -> nn.Module:
        """The network with fresh weights."""
        torch.manual_seed(0)
        return GPT(DataFacts(self.vocabulary, (self.block,)), **self.network).to(DEVICE)

    def mark(self) -> None:
        """A step ends here."""
        number = len(self._marks) + 1
        if DEVICE == "cuda" and number in (self.warm_up, self.steps):
            torch.cuda.synchronize()  # the clock is read twice only
        self._marks.append((time.perf_counter(), time.process_time()))

    def tell(self, version: str, **more: Any) -> None:
        """Tokens per second from the end of the warm-up to the last step."""
        (wall, cpu), (wall_end, cpu_end) = (
            self._marks[i] for i in (self.warm_up - 1, self.steps - 1)
        )
        tokens = (self.steps - self.warm_up) * self.share * WORLD_SIZE * self.block
        told = {
            "tokens_per_second": tokens / (wall_end - wall),
            "tokens_per_cpu_second": tokens / WORLD_SIZE / (cpu_end - cpu),
            "version": version,
            **more,
        }
        if RANK == 0:
            sys.stdout.write("\n" + json.dumps(told) + "\n")


def loss_of(network: Callable[[Tensor], Tensor], tokens_BT: Tensor) -> Tensor:
    """Mean cross-entropy of every token."""
    logits_BTV = network(tokens_BT)
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT.flatten().long())


def autocast(case: Case) -> torch.autocast:
    """The precision of the forward."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=case.is_bfloat16)


def rate_at(step: int, steps: int) -> float:
    """A cosine, as all loops compute one."""
    return RATE * 0.5 * (1 + math.cos(math.pi * step / steps))


def joined(network: nn.Module, case: Case) -> nn.Module:
    """Compiled where it is asked for, and replicated where there are several ranks."""
    model: nn.Module = torch.compile(network) if case.is_compiled else network  # type: ignore[assignment]  # it returns a module for a module
    if WORLD_SIZE == 1:
        return model
    torch.distributed.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    return nn.parallel.DistributedDataParallel(model)


def plain(case: Case) -> None:
    """The limit: everything in memory, nothing but the arithmetic."""
    tokens, network = case.tokens(), case.build()
    model = joined(network, case)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, fused=True)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(RANK))
    for step in range(case.steps):
        places = order[torch.arange(step * case.share, (step + 1) * case.share) % len(order)]
        batch = tokens[places].to(DEVICE)
        with autocast(case):
            loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, case.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        case.mark()
    case.tell(torch.__version__)


def nanogpt(case: Case) -> None:
    """As nanoGPT's train.py goes: a memory map, random offsets, the next batch drawn early."""
    flat = np.lib.format.open_memmap(case.folder / "tokens.npy", mode="r").reshape(-1)
    torch.manual_seed(1337 + RANK)

    def draw() -> Tensor:
        starts = torch.randint(len(flat) - case.block, (case.share,)).tolist()
        cut = [flat[i : i + case.block].astype(np.int64) for i in starts]
        batch = torch.stack([torch.from_numpy(part) for part in cut])
        return batch.pin_memory().to(DEVICE, non_blocking=True) if DEVICE == "cuda" else batch

    network = case.build()
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)
    model = joined(network, case)
    batch = draw()
    for step in range(case.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, case.steps)
        with autocast(case) if case.is_bfloat16 else nullcontext():
            loss = loss_of(model, batch)
        batch = draw()  # while the device is busy with the forward
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % LOG_EVERY == 0 and RANK == 0:
            loss.item()
        case.mark()
    case.tell(torch.__version__)


class Blocks(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The blocks as the frameworks want them."""

    def __init__(self, case: Case) -> None:
        self._tokens = case.tokens()
        self._size = case.share * case.steps * WORLD_SIZE

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"tokens": self._tokens[number % len(self._tokens)]}


def huggingface(case: Case) -> None:
    """Hugging Face's Trainer."""
    import_module("benchmarks.peers.cpu_torchvision")  # before the library imports torchvision
    import transformers
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = case.build()

        def forward(self, tokens: Tensor) -> dict[str, Tensor]:
            return {"loss": loss_of(self.network, tokens)}

    class Marks(TrainerCallback):  # type: ignore[misc]  # of a library that is not looked into
        def on_step_end(self, *_: Any, **__: Any) -> None:
            case.mark()

    arguments = TrainingArguments(
        str(case.folder / "huggingface"),
        per_device_train_batch_size=case.share,
        max_steps=case.steps,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        max_grad_norm=CLIP,
        bf16=case.is_bfloat16,
        torch_compile=case.is_compiled,
        use_cpu=DEVICE == "cpu",
        optim="adamw_torch_fused",
        report_to=[],
        save_strategy="no",
        logging_steps=LOG_EVERY,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=DEVICE == "cuda",
    )
    Trainer(Wrapped(), arguments, train_dataset=Blocks(case), callbacks=[Marks()]).train()
    case.tell(transformers.__version__)


def lightning(case: Case) -> None:
    """Lightning's Trainer."""
    import_module("benchmarks.peers.cpu_torchvision")  # before the library imports torchvision
    import lightning as package

    class Module(package.LightningModule):  # type: ignore[misc]  # untyped where not installed
        def __init__(self) -> None:
            super().__init__()
            network = case.build()
            self.network: Any = torch.compile(network) if case.is_compiled else network

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            loss = loss_of(self.network, batch["tokens"])
            self.log("loss", loss)
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            case.mark()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.network.parameters(), lr=RATE, fused=True)
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: rate_at(step, case.steps) / RATE
            )
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    trainer = package.Trainer(
        accelerator="gpu" if DEVICE == "cuda" else "cpu",
        devices=WORLD_SIZE,
        strategy="ddp" if WORLD_SIZE > 1 else "auto",
        precision="bf16-mixed" if case.is_bfloat16 else "32-true",
        max_steps=case.steps,
        gradient_clip_val=CLIP,
        logger=False,
        log_every_n_steps=LOG_EVERY,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(Blocks(case), case.share, shuffle=True)
    trainer.fit(Module(), loader)
    case.tell(package.__version__)


def millrace(case: Case, *, is_chosen: bool = False) -> None:
    """Ours, from shards, with its progress told and its scalars drawn as in every training."""
    from contextlib import closing

    import millrace as package
    from millrace import manifest as manifests
    from millrace.job import Job
    from millrace.storage import FsspecStorage
    from millrace.train.choice import settle
    from millrace.train.loop import Trainer, TrainingData
    from millrace.train.strategy import Strategy
    from millrace.train.watch import Watch, scale_of
    from millrace.train.world import World

    job = Job.model_validate_json((case.folder / "job.json").read_bytes())
    job = job.model_copy(update={"key": f"{WORLD_SIZE}-{is_chosen}"})
    storage = FsspecStorage(job.store)
    shards = manifests.read(storage, job.inputs["shards"])
    world = World.join() if WORLD_SIZE > 1 else World.alone()
    data = TrainingData.load(storage, shards, job.spec.train.mix)
    # A training of one step is not worth measuring: the figures alone, the strategy is given.
    choice = settle(job, data, world, storage, job.spec.train.steps if is_chosen else 1)
    precision: Literal["float32", "bfloat16"] = "bfloat16" if case.is_bfloat16 else "float32"
    strategy = choice.strategy
    if not is_chosen:
        strategy = Strategy(precision=precision, is_compiled=case.is_compiled)
    with closing(data), closing(Trainer(job, data, world, strategy=strategy)) as trainer:
        watch = Watch(job, storage, trainer, scale_of(job, data, choice, world), world)

        def after_step() -> None:
            watch.step()
            case.mark()

        trainer.run_to(case.warm_up, after_step)
        before = trainer.spent
        trainer.run_to(case.steps, after_step)
        spent = trainer.spent - before
        rates = scale_of(job, data, choice, world).rates(spent)
        watch.close()
    world.leave()
    rates = {name: rates[name] for name in ("mfu", "data_stall")}
    case.tell(getattr(package, "__version__", ""), strategy=choice.told, **rates)


def millrace_chosen(case: Case) -> None:
    """Ours under the strategy that it chooses by itself."""
    millrace(case, is_chosen=True)


CONTESTANTS: Mapping[str, Callable[[Case], None]] = {
    function.__name__: function
    for function in (millrace, millrace_chosen, plain, nanogpt, huggingface, lightning)
}


def main() -> None:
    """Train as the contestant named on the command line."""
    warnings.simplefilter("ignore")
    name, folder, warm_up, steps = sys.argv[1:]
    if DEVICE == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORLD_SIZE))
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    CONTESTANTS[name](Case(Path(folder), int(warm_up), int(steps)))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
