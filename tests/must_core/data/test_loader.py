"""The loader: the same batches for any number of processes on either side of it, whatever signals fly about."""

import multiprocessing.process
import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from must_core.backbone import Preprocess
from must_core.config import AdaptConfig
from must_core.data import loader
from must_core.data.augment import Views
from must_core.data.image_list import ImageList
from must_core.data.loader import (
    ImageFiles,
    ImageSource,
    epoch_order,
    evaluation_batches,
    find_images,
    image_source,
    training_batches,
)
from must_core.errors import UnreadableImage
from must_core.parallel import Ranks
from must_core.seeding import ORDER, derive_seed
from tests.support.tiny import make_images

PREPROCESS = Preprocess(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic", "shortest", 0)
VIEWS = Views(PREPROCESS, AdaptConfig())
BATCH_SIZE = 6


class Plain:
    """A source of plain images, no two alike."""

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images

    def __len__(self) -> int:
        return self._num_images

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (20, 18), (index % 256, index // 256, 7))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"), 20)


def batches(
    images: "list[Path] | ImageSource",
    *,
    first_step: int = 0,
    num_workers: int = 0,
    share: slice | None = None,
) -> list[tuple[Tensor, Tensor]]:
    return list(
        training_batches(
            images, VIEWS, batch_size=BATCH_SIZE, epochs=2, seed=3, first_step=first_step, num_workers=num_workers,
            share=share or slice(None),
        )
    )  # fmt: skip


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_the_order_is_what_it_always_was() -> None:
    """Pinned: another order would be another run, and old checkpoints would resume into it."""
    order = epoch_order(10, seed=7, epoch=2)
    generator = torch.Generator().manual_seed(derive_seed(ORDER, 7, 2))
    assert order.tolist() == torch.randperm(10, generator=generator).tolist() == PINNED
    assert not torch.equal(order, epoch_order(10, seed=7, epoch=3))
    assert isinstance(order, Tensor)


PINNED = [5, 4, 8, 9, 3, 6, 7, 1, 0, 2]


def test_batches_follow_the_order(paths: list[Path]) -> None:
    files = ImageFiles(paths)
    got = batches(paths)
    assert len(got) == 6
    for step, (weak_BCHW, strong_BCHW) in enumerate(got):
        epoch, position = divmod(step, 3)
        chosen = epoch_order(20, seed=3, epoch=epoch)[position * BATCH_SIZE : (position + 1) * BATCH_SIZE].tolist()
        for row, index in enumerate(chosen):
            weak_CHW, strong_CHW = VIEWS(files.image(index), 3, epoch, index)
            assert torch.equal(weak_BCHW[row], weak_CHW)
            assert torch.equal(strong_BCHW[row], strong_CHW)


@pytest.mark.parametrize(("first_step", "num_workers"), [(0, 0), (1, 0), (4, 2)])
def test_equal_shares_make_up_the_batch(paths: list[Path], first_step: int, num_workers: int) -> None:
    whole = batches(paths)[first_step:]
    shares = [
        batches(paths, first_step=first_step, num_workers=num_workers, share=Ranks(rank, 3).share_of(BATCH_SIZE))
        for rank in range(3)
    ]
    joined = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)]
    assert same(joined, whole)  # type: ignore[arg-type]
    assert all(len(weak) == BATCH_SIZE // 3 for weak, _ in shares[1])
    swapped = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*shares[::-1], strict=True)]
    assert not same(swapped, whole)  # type: ignore[arg-type]


def test_unequal_shares_make_up_the_batch(paths: list[Path]) -> None:
    shares = [batches(paths, share=Ranks(rank, 4).share_of(BATCH_SIZE)) for rank in range(4)]
    joined = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)]
    assert same(joined, batches(paths))  # type: ignore[arg-type]
    assert {len(weak) for share in shares for weak, _ in share} == {1, 2}


def test_kinds_of_sources_give_the_same_batches(paths: list[Path]) -> None:
    whole = batches(paths)
    assert same(batches(ImageList.of(paths)), whole)  # type: ignore[arg-type]
    assert same(batches(ImageFiles(paths)), whole)
    assert isinstance(image_source(paths), ImageFiles)
    assert image_source(source := Plain(3)) is source
    assert not same(batches(Plain(20)), whole)


def test_a_source_is_cheap_to_send() -> None:
    source = ImageFiles([Path(f"/data/images/{i:05}.jpg") for i in range(2000)])
    assert len(pickle.dumps(source)) < 25 * len(source)


def test_evaluation_keeps_the_order(paths: list[Path]) -> None:
    transform = PREPROCESS.transform()
    expected = torch.stack([transform(Image.open(path)) for path in paths])
    for num_workers in (0, 2):
        got = torch.cat(list(evaluation_batches(paths, PREPROCESS, batch_size=7, num_workers=num_workers)))
        assert torch.equal(got, expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_named_and_nothing_else_said(tmp_path: Path, num_workers: int) -> None:
    paths = make_images(tmp_path, 7)
    damaged = tmp_path / os.fsdecode(b"caf\xe9.png")
    damaged.write_bytes(paths[0].read_bytes()[:60])
    for iterator in (
        training_batches([*paths, damaged], VIEWS, batch_size=8, epochs=1, seed=0, num_workers=num_workers),
        evaluation_batches([*paths, damaged], PREPROCESS, num_workers=num_workers),
    ):
        with pytest.raises(UnreadableImage) as caught:
            list(iterator)
        assert caught.value.message == f"{tmp_path.name}/caf\\xe9.png: The image cannot be decoded. (image_corrupt)"


def test_finding_images_gives_a_compact_list(paths: list[Path]) -> None:
    found = find_images(paths[0].parent)
    assert isinstance(found, ImageList)
    assert list(found) == paths


def test_loader_processes_have_one_thread() -> None:
    class Threads(Plain):
        def image(self, index: int) -> Image.Image:
            return Image.new("RGB", (20, 20), (torch.get_num_threads(), 0, 0))

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        here, there = (
            next(iter(evaluation_batches(Threads(1), PREPROCESS, num_workers=n)))[0, 0, 0, 0] for n in (0, 1)
        )
    finally:
        torch.set_num_threads(before)
    assert [round(float(value * 0.25 + 0.5) * 255) for value in (here, there)] == [3, 1]


def load(connection: Connection, changes: dict[str, object]) -> None:
    """The body of a program in a process group of its own: starts to load, waits to be told, loads on and fails."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    for name, value in changes.items():
        setattr(loader, name, value)
    torch.set_num_threads(3)  # gives its loader processes threads that PyTorch starts before we have a say
    heard: list[int] = []
    try:
        batches = training_batches(Plain(4000), VIEWS, batch_size=2, epochs=1, seed=0, num_workers=2)
        next(batches), next(batches)  # one from each: both are up
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _frame: heard.append(number))
        connection.send([int(pid) for pid in Path("/proc/thread-self/children").read_text().split()])
        connection.recv()
        for _ in range(60):  # more than lie ready
            next(batches)
    except RuntimeError:
        connection.send("lost a process")
        os._exit(1)
    connection.send(heard)
    raise AssertionError("its traceback keeps the loader alive until Python exits")


@contextmanager
def loading(**changes: object) -> Iterator[tuple[multiprocessing.process.BaseProcess, list[int], Connection]]:
    """The program, the process ids of its two loader processes, and the line to it."""
    forking = multiprocessing.get_context("fork")  # everything is imported already
    ours, theirs = forking.Pipe()
    program = forking.Process(target=load, args=(theirs, changes))
    program.start()
    theirs.close()
    workers: list[int] = []
    try:
        workers += ours.recv()
        assert len(workers) == 2
        yield program, workers, ours
    finally:
        program.kill()
        program.join()
        assert all_end(workers, within_s=30)


def send_to_group(program: multiprocessing.process.BaseProcess, number: int) -> None:
    assert program.pid is not None
    os.killpg(program.pid, number)
    time.sleep(0.3)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_end(pids: list[int], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(alive, pids))


def test_signals_to_the_group_are_the_parents() -> None:
    """As Ctrl-C in a terminal and a stopping service manager send them."""
    with loading() as (program, _, line):
        send_to_group(program, signal.SIGINT)
        send_to_group(program, signal.SIGTERM)
        line.send("go on")
        assert line.recv() == [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_group_would_cost_a_loader_process(number: signal.Signals) -> None:
    """The control: what PyTorch does by itself."""
    with loading(_GROUP_SIGNALS=set(), _heed_the_parent=lambda _: None) as (program, _, line):
        send_to_group(program, number)
        with suppress(BrokenPipeError):  # it may be over already
            line.send("go on")
        assert line.recv() == "lost a process"


def test_a_program_that_fails_takes_its_loader_processes_along() -> None:
    """Python ends them by SIGTERM when it exits, and waits for them."""
    with loading() as (program, workers, line):
        line.send("go on")
        program.join(60)
        assert program.exitcode == 1
        assert all_end(workers, within_s=1)


def test_a_program_that_fails_would_wait_for_ever() -> None:
    """The control: loader processes that ignore SIGTERM, whoever sends it."""
    with loading(_heed_the_parent=lambda _: None) as (program, workers, line):
        line.send("go on")
        assert line.recv() == []
        program.join(3)
        assert program.exitcode is None
        assert all(map(alive, workers))


def test_loader_processes_end_with_a_parent_that_is_killed() -> None:
    """PyTorch has them look for it every five seconds; see `loading`."""
    with loading() as (_, workers, _line):
        assert all(map(alive, workers))
