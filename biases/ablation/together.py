"""Training the seeds of an arm together: their models stacked, one update for all.

Each seed keeps its own batches, initial weights, dropout, gradient norm, divergence, evaluation and result: those of
:func:`~biases.ablation.train_cell` up to rounding, as products over stacked weights add in another order. From one
state, an update differs by rounding alone; over many updates training amplifies that, as it does for another machine or
number of threads.

It pays where a model is too small for what it runs on. On two cores of a CPU, eight seeds of 2 layers of width 32 on 4
windows of 32 characters were trained 2.1 (``standard``) and 2.7 (``ega``) times as fast as one after another, and 1.1
and 1.4 times as fast as by two processes. From width 64 on 16 windows of 64 characters on, products fill a core:
nothing is gained, and two processes take half the time (``benchmarks/together.py``). On a CPU one cell at a time
is the better default. It has not been run on a GPU, and neither compiles models nor captures CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from biases._checks import fail
from biases.ablation._loop import (
    REPORT_EVERY,
    Diverged,
    Progress,
    Record,
    arithmetic,
    check_device,
    learned_values,
    learning_rate,
    own_random_state,
)
from biases.ablation._stack import RandomStates, Stack
from biases.ablation.data import Text
from biases.ablation.evaluation import evaluating, evaluation_windows, sample_positions, token_losses
from biases.ablation.spec import Cell
from biases.ablation.training import (
    Build,
    build_model,
    check_text,
    describe,
    generator,
    initialise,
    training_batch,
)


def train_together(
    cells: Sequence[Cell],
    text: Text,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    build: Build = build_model,
) -> list[dict[str, Any]]:
    """Train and evaluate cells that differ in nothing but their seeds. The caller's random state is left as it was.

    A seed that diverges has its outcome, and neither changes nor stops the others.

    Args:
        device, progress, build: as for :func:`~biases.ablation.train_cell`.

    Returns:
        What :func:`~biases.ablation.train_cell` returns of each cell, in their order.

    Raises:
        ValueError: cells that differ in more than their seeds; a model that cannot be vectorised over
            (``torch.func.vmap``), or that draws random numbers other than by dropout; and what ``train_cell`` refuses.
    """
    if not cells:
        fail("cells that advance together", "at least one", "none")
    for cell in cells:
        if replace(cell, seed=cells[0].seed) != cells[0]:
            fail("cells that advance together", f"those of {cells[0].config} but for the seed", cell.config)
    check_text(cells[0], text)
    device = check_device(device)
    with own_random_state(device, cells[0].seed):
        return Together(cells, text, device, build, progress).run()


class Together:
    """One training of several seeds; see :func:`train_together`."""

    def __init__(self, cells: Sequence[Cell], text: Text, device: str, build: Build, progress: Progress | None) -> None:
        self.cells, self.text, self.device = cells, text, device
        self.config, self.context = cells[0].train, cells[0].model.context
        models = []
        for cell in cells:
            torch.manual_seed(cell.seed)
            models.append(build(cell, len(text.vocabulary)))
            initialise(models[-1], cell.seed)
            models[-1].to(device)
        self.random = RandomStates([cell.seed for cell in cells], device)
        self.stack = Stack(models, self.random)
        groups = self.stack.groups(cast(Any, models[0]).parameter_groups(self.config.weight_decay))
        fused = torch.device(device).type in ("cpu", "cuda")
        self.optimiser = torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=self.config.betas, fused=fused)
        self.records = [
            Record(self.config, progress, {"id": cell.id, "arm": cell.arm, "seed": cell.seed}) for cell in cells
        ]
        self.orders = [generator(cell.seed, "batches") for cell in cells]
        self.validation = evaluation_windows(text.validation, self.context, self.config.evaluation_windows)
        self.latest = torch.empty(0)
        self.outcomes: list[dict[str, Any] | None] = [None] * len(cells)

    def run(self) -> list[dict[str, Any]]:
        self.stack.model.train()
        self._try_out()
        self._point(0)
        losses: list[Tensor] = []
        for step in range(1, self.config.steps + 1):
            if not self.live():
                break
            losses.append(self.update(step))
            due = step % self.config.evaluate_every == 0 or step == self.config.steps
            if due or len(losses) == REPORT_EVERY:
                by_seed = torch.stack(losses, dim=1).tolist()
                self._each(partial(self._record_updates, by_seed, step))
                losses.clear()
            if due:
                self._point(step)
        self._finish()
        return cast(list[dict[str, Any]], self.outcomes)

    def live(self) -> list[int]:
        """The seeds that have not diverged."""
        return [index for index, outcome in enumerate(self.outcomes) if outcome is None]

    def _record_updates(self, losses: list[list[float]], step: int, index: int) -> None:
        self.records[index].updates(losses[index], step)

    def _each(self, do: Callable[[int], None]) -> None:
        """Do something for every live seed; one that turns out to have diverged has its outcome."""
        for index in self.live():
            try:
                do(index)
            except Diverged as diverged:
                self.outcomes[index] = self.records[index].diverged(diverged)

    def _try_out(self) -> None:
        """One window forwards and backwards, to refuse what cannot be vectorised over.

        A parameter that is used otherwise than as an attribute of its module would be that of the first model for all.
        """
        windows, targets = self.validation[0][:1], self.validation[1][:1]
        try:
            with self.random.kept():
                self._losses(windows, targets).sum().backward()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"cells that advance together: expected a vectorisable model, got {reason}") from error
        past = [name for name, parameter in self.stack.model.named_parameters() if parameter.grad is not None]
        if past:
            fail("cells that advance together", "parameters used as attributes of their modules alone", past)
        self.optimiser.zero_grad(set_to_none=True)

    def _losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Losses (S, B, T) on windows of each seed, (S, B, T), or the same for all, (B, T)."""
        logits = self.stack(tokens.to(self.device))
        if logits.ndim != 4 or logits.shape[1:3] != targets.shape[-2:]:
            fail("model output", f"shape {(*targets.shape[-2:], 'V')}", tuple(logits.shape[1:]))
        return token_losses(logits, targets.to(self.device).expand(logits.shape[:3]))

    def update(self, step: int) -> Tensor:
        """Update ``step``, from 1, of every seed: their losses, (S,)."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.config, step)
        batches = [training_batch(self.text.train, self.context, self.config.batch, order) for order in self.orders]
        x, y = (torch.stack(parts) for parts in zip(*batches, strict=True))
        with arithmetic(self.device, self.config.precision):
            losses = self._losses(x, y).mean((1, 2))
        self.optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()
        if self.config.clip is not None:
            self.stack.clip(self.config.clip)
        self.optimiser.step()
        return losses.detach()

    def _full(self, windows: tuple[Tensor, Tensor]) -> Tensor:
        """As :func:`~biases.ablation.evaluation.full_losses`, (S, W, T)."""
        batches = zip(*(x.split(self.config.batch) for x in windows), strict=True)
        with evaluating(self.stack.model):
            return torch.cat([self._losses(x, y).cpu() for x, y in batches], dim=1).double()

    def _point(self, step: int) -> None:
        self.latest = self._full(self.validation)

        def point(index: int) -> None:
            losses = self.latest[index]
            if not losses.isfinite().all():
                raise Diverged("evaluation loss", step)
            record = self.records[index]
            record.point(step, {"train": record.mean_loss(), "validation": losses.mean().item()})

        self._each(point)

    def _truncated(self, pairs: list[Tensor]) -> Tensor:
        """As :func:`~biases.ablation.evaluation.truncated_losses` at each seed's pairs (K, 2): (S, K).

        Where seeds have different numbers of prefixes of a length, the shorter lists are filled up with others.
        """
        inputs, targets = self.validation
        positions = torch.stack([each[:, 1] for each in pairs])
        losses = torch.empty(positions.shape, dtype=torch.float64)
        with evaluating(self.stack.model):
            for position in positions.unique().tolist():
                members = [(row == position).nonzero().flatten() for row in positions]
                most = max(len(each) for each in members)
                windows = torch.zeros(len(pairs), most, dtype=torch.int64)
                for row, of, each in zip(windows, pairs, members, strict=True):
                    row[: len(each)] = of[each, 0]
                parts = [
                    self._losses(inputs[chunk, : position + 1], targets[chunk, : position + 1])[..., -1].cpu()
                    for chunk in windows.split(self.config.batch, dim=1)
                ]
                for row, values, each in zip(losses, torch.cat(parts, dim=1).double(), members, strict=True):
                    row[each] = values[: len(each)]
        return losses

    def _finish(self) -> None:
        if not self.live():
            return
        config, (windows, context) = self.config, self.validation[0].shape
        train = self._full(evaluation_windows(self.text.train, self.context, windows))
        draws = [generator(cell.seed, "positions") for cell in self.cells]
        pairs = [sample_positions(windows, context, config.truncated_positions, draw) for draw in draws]
        truncated = self._truncated(pairs) if config.truncated_positions else None

        def finish(index: int) -> None:
            model = self.stack.single(index)
            prefixes = None if truncated is None else (truncated[index], pairs[index])
            metrics = describe(model, config, self.latest[index], train[index], prefixes)
            self.outcomes[index] = self.records[index].finished(metrics, learned_values(model))

        self._each(finish)
