"""Evaluation of a segmentation model, shared out between the processes of a distributed run."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from tqdm import tqdm

from paddle_vheat._paddle import paddle
from paddle_vheat.engine.data import load_batches, read_sample, sample_files
from paddle_vheat.engine.metrics import SegmentationScores, confusion_matrix
from paddle_vheat.integrations.paddleseg import infer


class ValidationSamples(paddle.io.Dataset):
    """A PaddleSeg dataset's image, label, coded transforms and index, as arrays."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        item = read_sample(self.dataset, i)
        return item["img"], item["label"], code_undo(item["trans_info"]), np.int64(i)


_UNDO = ("resize", "padding")


def code_undo(steps: Any) -> np.ndarray:
    """What undoes the transforms, [("resize", (h, w)), ...], as int64 (n + 1, 3), to travel between processes.

    The first row says nothing: Paddle's loader workers cannot send an array of no elements.
    """
    return np.array([(-1, 0, 0), *((_UNDO.index(kind), *size) for kind, size in steps)], np.int64)


def undo_list(undo: np.ndarray) -> list[tuple[str, tuple[int, int]]]:
    """Inverse of :func:`code_undo`."""
    return [(_UNDO[kind], (int(h), int(w))) for kind, h, w in undo[1:].tolist()]


def _check_windows(crop_size: Any, stride: Any) -> None:
    for pair in (crop_size, stride):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("sliding-window evaluation needs crop_size and stride, each as width height")
    if min(stride) < 1:
        raise ValueError(f"the stride must be at least 1 pixel each way, got {list(stride)}")
    if stride[0] > crop_size[0] or stride[1] > crop_size[1]:
        raise ValueError(f"the stride {list(stride)} is larger than the window {list(crop_size)}: pixels are missed")


def check_options(options: dict[str, Any]) -> None:
    """Raise a ValueError for options of :func:`predict_logits` that cannot be, before anything is run."""
    if options.get("is_slide"):
        _check_windows(options.get("crop_size"), options.get("stride"))
    if options.get("aug_eval"):
        _scale_list(options.get("scales", 1.0))


def _scale_list(scales: Any) -> list[float]:
    scales = [float(s) for s in (scales if isinstance(scales, (list, tuple)) else [scales])]
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive numbers, got {scales}")
    return scales


def predict_logits(
    model: Any,
    image: Any,
    undo: list[tuple[str, tuple[int, int]]],
    *,
    aug_eval: bool = False,
    scales: Any = 1.0,
    flip_horizontal: bool = False,
    flip_vertical: bool = False,
    is_slide: bool = False,
    crop_size: Any = None,
    stride: Any = None,
) -> Any:
    """Logits (1, C, H, W) at the size of the original image, by PaddleSeg's inference.

    Args:
        model: gives a list whose first entry are logits at the size of its input.
        image: tensor (1, 3, h, w), transformed.
        undo: the transforms' ``trans_info``.
        aug_eval: average over ``scales`` and flips.
        is_slide: sliding windows of ``crop_size`` [width, height] at ``stride`` [width, height].
    """
    if is_slide:
        _check_windows(crop_size, stride)
    slide = {"is_slide": is_slide, "crop_size": crop_size, "stride": stride}
    if aug_eval:
        scales = _scale_list(scales)
        flips = {"flip_horizontal": flip_horizontal, "flip_vertical": flip_vertical}
        return infer.aug_inference(model, image, trans_info=undo, scales=scales, **flips, **slide)[1]
    return infer.inference(model, image, trans_info=undo, **slide)[1]


def evaluate(
    model: Any,
    dataset: Any,
    class_names: list[str],
    *,
    num_workers: int = 0,
    autocast: Any = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Score a model on a dataset, one image at a time, each at its own size.

    Args:
        model: segmentation model; its mode is restored afterwards.
        dataset: PaddleSeg dataset in mode "val".
        class_names: names of the classes.
        num_workers: processes that read images.
        autocast: function that gives a context manager for mixed precision, or None.
        progress: show a progress bar (process 0 only).
        **options: see :func:`predict_logits`.

    Returns:
        "score" (mIoU), "table" (for people), "report" (for JSON), "images", "scores" (:class:`SegmentationScores`) and
        "confusion" (the matrix). Equal on every process.
    """
    rank, ranks = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    share = range(rank, len(dataset), ranks)
    loader = load_batches(ValidationSamples(dataset), [[i] for i in share], num_workers)
    matrix = np.zeros((len(class_names), len(class_names)), np.int64)
    was_training = model.training
    model.eval()
    try:
        show = None if progress and rank == 0 else True
        # it leaves no trace: during training, the training bar stands below it
        bar = tqdm(loader, total=len(share), desc="evaluating", unit="img", leave=False, disable=show)
        with paddle.no_grad():
            for image, label, undo, index in bar:
                steps = undo_list(undo.numpy()[0])
                try:
                    with autocast() if autocast is not None else contextlib.nullcontext():
                        logits = predict_logits(model, image, steps, **options)
                    prediction = paddle.argmax(logits, axis=1).numpy()[0]
                    truth = label.numpy()[0, 0]
                    matrix += confusion_matrix(truth, prediction, len(class_names), dataset.ignore_index)
                except ValueError as error:
                    where = (sample_files(dataset, int(index)) or [f"sample {int(index)}"])[-1]
                    raise ValueError(f"{where}: {error}") from error
    finally:
        loader.close()
        if was_training:
            model.train()
    if ranks > 1:
        total = paddle.to_tensor(matrix)
        paddle.distributed.all_reduce(total)
        matrix = total.numpy()
    scores = SegmentationScores.of(matrix)
    report = {"images": len(dataset), **scores.as_dict(class_names)}
    return {
        "table": scores.table(class_names),
        "scores": scores,
        "confusion": matrix,
        "images": len(dataset),
        "report": report,
        "score": scores.miou,
    }
