"""A peer's training with checkpoints: unbroken, or killed at a step, or resumed.

    python -m benchmarks.peers.resume CONTESTANT FOLDER DIE_AT

A multilayer perceptron with dropout on made data, seeded alike in all; DIE_AT 0: to the end. Prints
a line of JSON: digest of the weights, step resumed from, seconds in the loop and in checkpoints.
`dcp` is torchtitan's way: dcp.async_save on a thread of its own, the loader's position and the
random state among what is saved, the newest folder with a `.metadata` loaded.
"""

import hashlib
import json
import os
import signal
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STEPS, EVERY, BATCH, SAMPLES, WIDTH = 120, 20, 64, 2048, 1024
DROPOUT, RATE, SEED = 0.1, 1e-3, 0


def build_network() -> nn.Module:
    """4 to 1024 to 1024 to 1024 to 3."""
    layers: list[nn.Module] = []
    width = 4
    for _ in range(3):
        layers += [nn.Linear(width, WIDTH), nn.GELU(), nn.Dropout(DROPOUT)]
        width = WIDTH
    return nn.Sequential(*layers, nn.Linear(width, 3))


def build_data() -> tuple[Tensor, Tensor]:
    """Clouds about three corners."""
    draw = torch.Generator().manual_seed(SEED)
    labels = torch.randint(0, 3, (SAMPLES,), generator=draw)
    return torch.randn(SAMPLES, 4, generator=draw) + 1.5 * torch.eye(4)[labels], labels


def digest(network: nn.Module) -> str:
    """Of the weights' bytes."""
    data = b"".join(p.detach().numpy().tobytes() for p in network.parameters())
    return hashlib.sha256(data).hexdigest()[:16]


def die(step: int, at: int) -> None:
    """Kill -9 at a step; at 0 never."""
    if at and step == at:
        os.kill(os.getpid(), signal.SIGKILL)


def run_dcp(folder: Path, die_at: int) -> dict[str, Any]:
    """The plain loop with torch.distributed.checkpoint."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import async_save

    joined = f"file://{folder}/join-{os.getpid()}"
    dist.init_process_group("gloo", init_method=joined, rank=0, world_size=1)
    torch.manual_seed(SEED)
    network, (inputs, labels) = build_network(), build_data()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, fused=True)

    def state() -> dict[str, Any]:
        model, moments = get_state_dict(network, optimizer)
        random = torch.get_rng_state()
        return {"model": model, "optimizer": moments, "random": random, "step": torch.tensor(step)}

    step, resumed_at, stalled = 0, 0, 0.0
    pending: Any = None
    kept = [path for path in folder.glob("step-*") if (path / ".metadata").exists()]
    if kept:
        found = state()
        load(found, checkpoint_id=str(max(kept)))
        set_state_dict(
            network,
            optimizer,
            model_state_dict=found["model"],
            optim_state_dict=found["optimizer"],
        )
        torch.set_rng_state(found["random"])
        step = resumed_at = int(found["step"])
    say(resumed_at)
    group = dist.new_group(backend="gloo")
    start = time.perf_counter()
    while step < STEPS:
        die(step, die_at)
        epoch, position = divmod(step * BATCH, SAMPLES)
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(SEED + epoch))
        chosen = order[position : position + BATCH]
        nn.functional.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % EVERY == 0:
            began = time.perf_counter()
            if pending is not None:
                pending.result()
            where = f"{folder}/step-{step:06d}"
            pending = async_save(state(), checkpoint_id=where, process_group=group)
            stalled += time.perf_counter() - began
    seconds = time.perf_counter() - start
    if pending is not None:
        pending.result()
    return told(network, resumed_at, seconds, stalled, torch.__version__)


def say(resumed_at: int) -> None:
    """Tell where it goes on: of a run that is killed, all that is heard."""
    sys.stdout.write(json.dumps({"resumed_at": resumed_at}) + "\n")
    sys.stdout.flush()


def told(
    network: nn.Module, resumed_at: int, seconds: float, stalled: float, version: str
) -> dict[str, Any]:
    """What is printed."""
    return {
        "digest": digest(network),
        "resumed_at": resumed_at,
        "seconds": seconds,
        "stall_seconds": stalled,
        "version": version,
    }


def run_huggingface(folder: Path, die_at: int) -> dict[str, Any]:
    """Trainer with save_steps."""
    import_module("benchmarks.peers.cpu_torchvision")  # before the library imports torchvision
    import transformers
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
    from transformers.trainer_utils import get_last_checkpoint

    set_seed(SEED)
    inputs, labels = build_data()
    rows = [{"x": x, "y": y} for x, y in zip(inputs, labels, strict=True)]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build_network()

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"loss": nn.functional.cross_entropy(self.inner(x), y)}

    def kill(_arguments: Any, state: Any, _control: Any, **_: Any) -> None:
        die(state.global_step, die_at)

    killer: Any = TrainerCallback()
    killer.on_step_begin = kill
    find: Any = get_last_checkpoint
    model, newest = Model(), find(str(folder))
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        save_steps=EVERY,
        learning_rate=RATE,
        seed=SEED,
        use_cpu=True,
        report_to=[],
        logging_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer: Any = Trainer(model, arguments, train_dataset=rows, callbacks=[killer])
    save, stalled = trainer._save_checkpoint, [0.0]

    def save_timed(*arguments: Any, **named: Any) -> None:
        began = time.perf_counter()
        save(*arguments, **named)
        stalled[0] += time.perf_counter() - began

    trainer._save_checkpoint = save_timed
    at = int(newest.rpartition("-")[2]) if newest else 0
    say(at)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=newest)
    seconds = time.perf_counter() - start
    return told(model.inner, at, seconds, stalled[0], transformers.__version__)


def run_lightning(folder: Path, die_at: int) -> dict[str, Any]:
    """Its Trainer with ModelCheckpoint every n steps."""
    import_module("benchmarks.peers.cpu_torchvision")  # before the library imports torchvision
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    lightning.seed_everything(SEED, verbose=False)
    data = torch.utils.data.TensorDataset(*build_data())

    class Module(lightning.LightningModule):  # type: ignore[misc]  # mypy does not see lightning
        def __init__(self) -> None:
            super().__init__()
            self.inner = build_network()

        def training_step(self, batch: Any, _number: int) -> Tensor:
            die(self.trainer.global_step, die_at)
            return nn.functional.cross_entropy(self.inner(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=RATE)

    class Timed(ModelCheckpoint):  # type: ignore[misc]  # mypy does not see lightning
        stalled = 0.0

        def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
            began = time.perf_counter()
            super().on_train_batch_end(*arguments, **named)
            self.stalled += time.perf_counter() - began

    saver = Timed(str(folder), every_n_train_steps=EVERY, save_top_k=-1, save_last=True)
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    newest = folder / "last.ckpt"
    at = 0
    if newest.exists():
        at = torch.load(newest, weights_only=False)["global_step"]
    say(at)
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True)
    start = time.perf_counter()
    trainer.fit(module, loader, ckpt_path=str(newest) if at else None)
    seconds = time.perf_counter() - start
    return told(module.inner, at, seconds, saver.stalled, lightning.__version__)


CONTESTANTS = {"dcp": run_dcp, "huggingface": run_huggingface, "lightning": run_lightning}


def main() -> None:
    """Train as the arguments say, and print what came of it."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    name, where, die_at = sys.argv[1:]
    folder = Path(where)
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(json.dumps(CONTESTANTS[name](folder, int(die_at))) + "\n")


if __name__ == "__main__":
    main()
