"""One fixed training patch, drawn as training goes on: the truth, and what student and teacher make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from medcontext.data.plan import Plan
from medcontext.data.sampling import Batch
from medcontext.drawing import DPI, TRUTH_STYLE, contour, draw_legend, label_style, legend_size, short
from medcontext.method.diagnostics import hard_dice
from medcontext.method.masking import draw_mask, mask_grid, mask_to_voxels, volume_size
from medcontext.method.presets import MethodConfig

Pixels = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.bool_]


class PatchOverlay:
    """Draws the patch of a batch that has the most foreground, always the same, under always the same mask.

    It draws nothing from any random state but its own, and leaves the networks in the mode that they were in.

    Args:
        batch: Item 0 of the training batches, say.
        plan: Of the data: labels, spacing, outputs.
        method: Which mask, what fills it; without a masked pass there is no mask to draw.
        seed: Of the mask, and of the noise where that fills it.
    """

    def __init__(self, batch: Batch, plan: Plan, method: MethodConfig, seed: int = 0) -> None:
        foreground = (batch["label"] > 0).flatten(1).sum(1)
        place = int(foreground.argmax())
        self.case = batch["cases"][place]
        self._image = batch["image"][place : place + 1].float()
        self._label = batch["label"][place : place + 1].long()
        self._slice = int((self._label[0] > 0).flatten(1).sum(1).argmax())
        if not foreground[place]:
            self._slice = self._label.shape[1] // 2
        self._plan = plan
        self._method = method
        generator = torch.Generator().manual_seed(seed)
        grid = mask_grid(volume_size(self._image), method.hidden_patch)
        self._mask = draw_mask(method, 1, grid, generator) if method.masks else None
        self._noise = torch.randn(self._image.shape, generator=generator) if method.fill == "noise" else None

    @torch.no_grad()
    def __call__(self, student: nn.Module, teacher: nn.Module | None) -> Pixels:
        """Predict the patch and draw it.

        Args:
            student: A :class:`~medcontext.method.hiding.Student`, bare: no wrapper that would wait for other processes.
            teacher: The averaged network, in eval mode; None for supervised training.

        Returns:
            ``(H, W, 3)``: a panel each for the truth and for the predictions of student, masked student and teacher.
        """
        device = next(student.parameters()).device
        image, mask, noise = (None if each is None else each.to(device) for each in self._inputs())
        was_training = student.training
        student.eval()
        outputs = {"clean": student(image)}
        if mask is not None:
            outputs["masked"] = student(image, mask, noise)
        student.train(was_training)
        if teacher is not None:
            outputs["teacher"] = teacher(image)
        return self.draw({name: _finest(output).float().cpu() for name, output in outputs.items()})

    def _inputs(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self._image, self._mask, self._noise

    def draw(self, logits: Mapping[str, Tensor]) -> Pixels:
        """Draw predictions of the patch, ``(1, K, D, H, W)`` on the CPU, by the name of their panel."""
        membership = self._plan.labels.membership()
        members = None if membership is None else torch.from_numpy(membership)
        panels = [Panel("truth", f"slice {self._slice + 1} of {self._label.shape[1]}", self._truth(membership))]
        for name, each in logits.items():
            hidden, where = None, ""
            if name == "masked" and self._mask is not None:
                hidden, where = (
                    mask_to_voxels(self._mask, self._method.hidden_patch, volume_size(each))[:, 0],
                    " where hidden",
                )
            dice = float(hard_dice(each, self._label, hidden, members).nanmean())
            flat = each[0, :, self._slice]
            chosen = flat > 0 if members is not None else flat.argmax(0) == torch.arange(1, len(flat))[:, None, None]
            note = "" if math.isnan(dice) else f"Dice {dice:.2f}{where}"
            panels.append(Panel(name, note, chosen.numpy(), None if hidden is None else self._cells()))
        names = [name for name, _ in self._plan.labels.structures.values()]
        return draw_panels(self._image[0, 0, self._slice].numpy(), panels, names, self._plan.spacing[1:])

    def _truth(self, membership: Masks | None) -> Masks:
        """Structures of the slice, ``(S, H, W)``; voxels that nobody labelled belong to none."""
        label = self._label[0, self._slice].clamp_min(0).numpy()
        if membership is not None:
            return membership[:, label]
        return np.asarray(label == np.arange(1, self._plan.labels.classes)[:, None, None])

    def _cells(self) -> list[tuple[slice, slice]]:
        """Rows and columns of the hidden patches that the slice cuts."""
        assert self._mask is not None
        d, h, w = self._method.hidden_patch
        height, width = self._label.shape[2:]
        return [
            (slice(i * h, min((i + 1) * h, height)), slice(j * w, min((j + 1) * w, width)))
            for i, j in self._mask[0, self._slice // d].nonzero().tolist()
        ]


@dataclass(frozen=True)
class Panel:
    """One column of :func:`draw_panels`.

    Attributes:
        title: What it shows.
        note: Beside the title.
        structures: ``(S, H, W)`` boolean, whose outlines are drawn.
        cells: Rows and columns of the boxes to draw as hidden.
    """

    title: str
    note: str
    structures: Masks
    cells: Sequence[tuple[slice, slice]] | None = None


def draw_panels(
    image: npt.NDArray[np.floating[Any]], panels: Sequence[Panel], names: Sequence[str], spacing: tuple[float, ...]
) -> Pixels:
    """Outlines on a slice, one panel beside the other, the first of them the truth.

    In every further panel a thin white line is the outline of the truth. Rows and columns run towards the patient's
    head, front or right, as in every plan; both are turned around, into radiological convention.

    Args:
        image: ``(H, W)``.
        panels: At least one, of that size.
        names: Of the S structures.
        spacing: (H, W) in mm.

    Returns:
        ``(height, width, 3)``, about 300 pixels wide a panel.
    """
    tall, wide = (length * size for length, size in zip(image.shape, spacing, strict=True))
    panel, gap, head = 2.75, 0.1, 0.34
    height, width = panel * tall / wide, gap + len(panels) * (panel + gap)
    shown = [index for index in range(len(names)) if any(each.structures[index].any() for each in panels)]
    entries = [(names[index], label_style(index)) for index in shown]
    if len(panels) > 1:
        entries.append(("truth's outline", TRUTH_STYLE))
    columns, legend_height = legend_size([name for name, _ in entries], width)
    total = head + height + legend_height + 0.1
    figure = Figure(figsize=(width, total), dpi=DPI, facecolor="#101418")
    for place, each in enumerate(panels):
        box = ((gap + place * (panel + gap)) / width, (legend_height + 0.1) / total, panel / width, height / total)
        axes = figure.add_axes(box)
        truth = panels[0].structures if place else None
        _draw_panel(axes, image, each, truth, (tall, wide))
        axes.set_title(short(each.title, 20), loc="left", color="#ffffff", fontsize=11, pad=5, parse_math=False)
        axes.set_title(each.note, loc="right", color="#c9ced6", fontsize=10, pad=5)
    draw_legend(figure, entries, columns)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()


def _draw_panel(
    axes: Any, image: npt.NDArray[np.floating[Any]], panel: Panel, truth: Masks | None, size: tuple[float, float]
) -> None:
    """The grey slice, what is hidden of it, the outlines."""
    tall, wide = size
    low, high = np.percentile(image, (1, 99.5))
    axes.imshow(
        image[::-1, ::-1], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=(0, wide, tall, 0),
        interpolation="bicubic", aspect="auto",
    )  # fmt: skip
    down, across = tall / image.shape[0], wide / image.shape[1]
    for rows, columns in panel.cells or ():
        corner = (wide - columns.stop * across, tall - rows.stop * down)
        sides = ((columns.stop - columns.start) * across, (rows.stop - rows.start) * down)
        axes.add_patch(
            Rectangle(corner, *sides, facecolor="#20262ef2", edgecolor="#5b6470", hatch="///", linewidth=0.6)
        )
    for structure in () if truth is None else truth:
        if structure.any():
            contour(axes, structure[::-1, ::-1], size, TRUTH_STYLE)
    for index, structure in enumerate(panel.structures):
        if structure.any():
            contour(axes, structure[::-1, ::-1], size, label_style(index))
    axes.set(xlim=(0, wide), ylim=(tall, 0))
    axes.set_axis_off()


def _finest(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]
