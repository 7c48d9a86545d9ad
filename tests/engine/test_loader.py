"""The order of the data and its augmentation: functions of the seed and the position alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading

import numpy as np
import pytest

from paddle_vheat.engine.loader import IndexedDataset, IterationSampler, SeededDataset, derived_seed, load_batches
from paddle_vheat.errors import DataError
from tests.conftest import paddle
from tests.engine import tiny


def sampled(**arguments) -> list[list[tuple[int, int]]]:
    defaults = {"length": 7, "batch_size": 3, "iters": 14, "seed": 1}
    return list(IterationSampler(**{**defaults, **arguments}))


def flat(batches) -> list[tuple[int, int]]:
    return [sample for batch in batches for sample in batch]


@pytest.mark.parametrize(("length", "batch_size"), [(7, 3), (8, 4), (5, 12), (1, 2)])
def test_every_epoch_is_a_permutation(length, batch_size):
    iters = 6 * length // batch_size + 6
    samples = flat(sampled(length=length, batch_size=batch_size, iters=iters))
    assert [position for position, _ in samples] == list(range(iters * batch_size))
    epochs = [[i for _, i in samples[start : start + length]] for start in range(0, len(samples), length)]
    assert len(epochs) > 5
    for epoch in epochs[:-1]:  # the last may be cut by the end of the training
        assert sorted(epoch) == list(range(length))
    assert len(set(epochs[-1])) == len(epochs[-1])


def test_epochs_and_seeds_differ():
    def orders(seed):
        samples = flat(sampled(length=40, batch_size=40, iters=3, seed=seed))
        return [tuple(i for _, i in samples[k : k + 40]) for k in (0, 40, 80)]

    assert len({*orders(1), *orders(2), tuple(range(40))}) == 7


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_shard_what_one_process_would_see(ranks):
    shares = [sampled(length=11, iters=8, rank=rank, world_size=ranks) for rank in range(ranks)]
    alone = sampled(length=11, iters=8, batch_size=3 * ranks)
    together = [flat(batches) for batches in zip(*shares)]
    assert together == alone
    positions = [{position for position, _ in flat(share)} for share in shares]
    assert sum(len(part) for part in positions) == len(set().union(*positions)) == 8 * 3 * ranks


@pytest.mark.parametrize("start", [0, 1, 5, 13, 14])
@pytest.mark.parametrize("ranks", [1, 2])
def test_batches_do_not_depend_on_the_start(start, ranks):
    for rank in range(ranks):
        whole = sampled(rank=rank, world_size=ranks)
        sampler = IterationSampler(7, 3, 14, 1, start=start, rank=rank, world_size=ranks)
        assert list(sampler) == whole[start:]
        assert len(sampler) == len(whole) - start


@pytest.mark.parametrize(("groups", "batch_size"), [([0, 1, 0, 0, 1, 0, 1], 2), ([0, 0, 0, 0, 1], 3), ([1, 1], 4)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_of_one_group(groups, batch_size, shuffle):
    """No batch mixes two, every sample comes once in an epoch, or again only to fill up its group's last batch."""
    groups = np.asarray(groups)
    whole = -(-np.bincount(groups) // batch_size)
    per_epoch = int(whole.sum())
    arguments = {"length": len(groups), "batch_size": batch_size, "groups": groups, "shuffle": shuffle}
    found = sampled(**arguments, iters=5 * per_epoch)
    indices = [[index for _, index in batch] for batch in found]
    assert all(len(set(groups[batch])) == 1 for batch in indices)
    for start in range(0, len(found), per_epoch):
        counts = np.bincount(np.concatenate(indices[start : start + per_epoch]), minlength=len(groups))
        assert counts.min() >= 1
        assert counts.sum() == per_epoch * batch_size
        surplus = batch_size * whole - np.bincount(groups, minlength=len(whole))
        assert [int((counts[groups == g] - 1).sum()) for g in range(len(whole))] == surplus.tolist()
    assert sampled(**arguments, iters=5 * per_epoch, start=3) == found[3:]
    shares = [sampled(**arguments, iters=2, rank=rank, world_size=2) for rank in range(2)]
    assert [batch for pair in zip(*shares) for batch in pair] == sampled(**arguments, iters=4)


def test_an_empty_data_set_is_an_error():
    with pytest.raises(ValueError, match="training set is empty"):
        IterationSampler(0, 1, 1, 0)


def test_derived_seeds_differ():
    seeds = {derived_seed(seed, position) for seed in range(30) for position in range(100)}
    assert len(seeds) > 2990  # 3000 draws from 2^32: two equal ones have a chance of 1 in 1000
    assert derived_seed(1, 2) == derived_seed(1, 2) != derived_seed(2, 1)
    assert all(0 <= seed < 2**32 for seed in seeds)


class Noisy:
    """Draws from both of the global generators that PaddleSeg's augmentation uses."""

    def __init__(self, fail: bool = False) -> None:
        self.fail = fail

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index):
        draws = np.array([index, random.random(), np.random.rand()])
        if self.fail:
            raise ValueError("cannot be read")
        return {"img": draws, "meta": {"undo": [("resize", (1, 1))]}}


def global_states() -> tuple:
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, keys.tolist(), rest


@pytest.mark.parametrize("fail", [False, True])
def test_global_random_states_are_untouched(fail):
    random.seed(9)
    np.random.seed(9)
    np.random.randn()  # leaves half of a pair behind, which is part of the state
    before = global_states()
    dataset = SeededDataset(Noisy(fail), seed=1)
    if fail:
        with pytest.raises(ValueError, match="cannot be read"):
            dataset[(5, 1)]
    else:
        dataset[(5, 1)]
    assert global_states() == before


def test_augmentation_is_of_the_seed_and_the_position():
    def draws(seed, position, index=1):
        return SeededDataset(Noisy(), seed)[(position, index)]["img"].tolist()

    assert draws(1, 5) == draws(1, 5)
    assert draws(1, 5)[1:] == draws(1, 5, index=2)[1:]
    different = [draws(1, 5)[1:], draws(1, 6)[1:], draws(2, 5)[1:], draws(2, 6)[1:]]
    assert len({tuple(pair) for pair in different}) == 4


def test_metadata_travels_apart():
    item = SeededDataset(Noisy(), 1)[(5, 3)]
    assert sorted(item) == ["img", "meta"]
    assert item["meta"] == {"undo": [("resize", (1, 1))], "index": 3}
    (batch,) = load_batches(SeededDataset(Noisy(), 1), [[(5, 3), (6, 0)]], 2)
    assert batch["img"].shape == [2, 3]
    assert [meta["index"] for meta in batch["meta"]] == [3, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_ragged_batches(workers):
    """A task's collate may keep lists: samples of different sizes."""

    class Ragged(Failing):
        def __getitem__(self, i):
            return {"boxes": np.full((i, 4), i, np.float32)}

    def collate(samples):
        return {"boxes": [sample["boxes"] for sample in samples], "meta": [{}] * len(samples)}

    (batch,) = load_batches(Ragged(None), [[0, 2, 1]], workers, collate)
    assert [box.shape for box in batch["boxes"]] == [[0, 4], [2, 4], [1, 4]]
    assert float(batch["boxes"][1].sum()) == 16


def batches(task, workers: int, start: int = 0, iters: int = 7, seed: int = 4) -> list[dict[str, np.ndarray]]:
    dataset = SeededDataset(task.dataset("train"), seed)
    sampler = IterationSampler(len(dataset.dataset), 2, iters, seed, start=start)
    loader = load_batches(dataset, sampler, workers)
    return [{n: v if n == "meta" else v.numpy() for n, v in batch.items()} for batch in loader]


def assert_equal_batches(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert sorted(a) == sorted(b) == ["img", "label", "meta"]
        assert a["meta"] == b["meta"]
        for name in ("img", "label"):
            np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def task(cityscapes):
    return tiny.make_task(tiny.cityscapes_config(cityscapes))


@pytest.fixture(scope="module")
def reference(task):
    return batches(task, workers=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_augmented_batches_do_not_depend_on_the_workers(task, reference, workers):
    assert_equal_batches(batches(task, workers), reference)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_batches_of_a_resumed_run(task, reference, workers):
    assert_equal_batches(batches(task, workers, start=3), reference[3:])


def test_an_image_is_augmented_differently_in_every_epoch(task, reference):
    views: dict[int, list[np.ndarray]] = {}
    for batch in reference:
        for index, image in zip([meta["index"] for meta in batch["meta"]], batch["img"]):
            views.setdefault(int(index), []).append(image)
    assert len(views) == tiny.TRAIN_SCENES
    repeated = [images for images in views.values() if len(images) > 1]
    assert len(repeated) == tiny.TRAIN_SCENES  # 7 iterations of 2 are two epochs of 6, and 2 more
    for first, second, *_ in repeated:
        assert not np.array_equal(first, second)


def test_another_seed_gives_other_batches(task, reference):
    other = batches(task, workers=0, seed=5)
    assert all(not np.array_equal(a["img"], b["img"]) for a, b in zip(reference, other))


# --- errors -----------------------------------------------------------------------------------------


class Failing:
    """Gives numbers, until one that fails in the way it is told."""

    def __init__(self, action) -> None:
        self.action = action

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index):
        if index == 3:
            self.action()
        return {"x": np.array([index])}


def fail_with(error):
    def action():
        raise error

    return action


def loaded(dataset, workers) -> list[int]:
    return [
        int(x)
        for batch in load_batches(dataset, [[0, 1], [2, 3], [4, 5]], workers)
        for x in batch["x"].numpy().reshape(-1)
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (DataError("a/b.png: label value 7"), DataError, r"^a/b\.png: label value 7$"),
        (ValueError("a/b.png: no image"), DataError, r"^a/b\.png: no image$"),
        (FileNotFoundError("no such file: c"), DataError, "^no such file: c$"),
        (KeyError("edge"), RuntimeError, "^'edge' \\(KeyError\\)$"),
    ],
)
def test_an_error_in_the_data_set(workers, error, raised, message):
    """What is said of a file is a mistake of the user's, anything else a fault, with its traceback."""
    dataset = IndexedDataset(Failing(fail_with(error)))
    with pytest.raises(raised, match=message) as info:
        list(load_batches(dataset, [[0, 1], [2, 3]], workers))
    if not isinstance(error, DataError):
        assert info.value.__cause__ is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_leave_signals_to_the_parent(number):
    assert loaded(Failing(lambda: os.kill(os.getpid(), number)), 2) == list(range(6))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_in_order(workers):
    dataset = Failing(lambda: None)
    for batches in ([], [[5]], [[i % 6] for i in range(20)], [[1, 2], [0], [3, 4, 5]]):
        found = [batch["x"].numpy().reshape(-1).tolist() for batch in load_batches(dataset, batches, workers)]
        assert found == batches


@pytest.mark.parametrize("workers", [0, 2])
def test_kinds_of_samples(workers):
    """Arrays of any kind, of no elements as well, and plain numbers."""

    class Kinds(Failing):
        def __getitem__(self, i):
            arrays = np.full((2, 3), i, np.float32), np.zeros((0, 3), np.int64), np.uint8(i), i
            return {**dict(zip("abcd", arrays)), "flag": np.array(i > 0)}

    (batch,) = load_batches(Kinds(None), [[0, 2]], workers)
    real, empty, small, plain = (batch[name] for name in "abcd")
    assert (real.shape, real.dtype) == ([2, 2, 3], paddle.float32)
    assert (empty.shape, empty.dtype) == ([2, 0, 3], paddle.int64)
    assert small.numpy().tolist() == plain.numpy().tolist() == [0, 2]
    assert batch["flag"].numpy().tolist() == [False, True]


def test_a_large_batch_travels():
    """More than a pipe holds, from each worker, with the next ones waiting."""

    class Large(Failing):
        def __getitem__(self, i):
            return {"x": np.full((256, 1024), i, np.float32)}

    found = [float(batch["x"].numpy().mean()) for batch in load_batches(Large(None), [[i, i] for i in range(6)], 2)]
    assert found == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_left_behind_by_a_caller_that_stops(workers):
    threads = threading.active_count()
    loader = load_batches(Failing(lambda: None), [[i] for i in range(6)], workers)
    next(loader)
    started = multiprocessing.active_children()
    assert len(started) == workers
    loader.close()
    assert threading.active_count() == threads
    assert multiprocessing.active_children() == []
    assert not any(process.is_alive() for process in started)


def test_loaders_inside_each_other():
    """An evaluation while the training's workers are there; the outer may even end first."""
    outer = load_batches(Failing(lambda: None), [[i] for i in range(6)], 2)
    next(outer)
    inner = load_batches(Failing(lambda: None), [[i] for i in range(6)], 2)
    next(inner)
    assert len(multiprocessing.active_children()) == 4
    outer.close()
    assert len(list(inner)) == 5
    assert multiprocessing.active_children() == []


NOT_CLOSED = """
import numpy as np
from paddle_vheat._paddle import paddle
from paddle_vheat.engine.loader import load_batches

class Data:
    def __len__(self):
        return 50

    def __getitem__(self, i):
        return {"x": np.array([i])}

loader = load_batches(Data(), [[i] for i in range(50)], 2)
next(loader)
print("at the end", flush=True)
"""


def test_a_program_ends_although_it_has_not_closed_its_loader():
    finished = tiny.run(["-c", NOT_CLOSED], timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "at the end\n"
