"""A bad image costs itself: not its neighbours, not the pool, not the service."""

import asyncio
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.exceptions import Unavailable
from app.ingest.decode_child import CheckedImage
from app.ingest.decoding import DecoderPool
from must_core.data.images import ImageLimits, ImageRejected, decode_rgb
from tests.support.images import many_scans, sound

SLOW = ImageLimits(max_pixels=30_000_000, max_jpeg_scans=10**6)


@pytest.fixture(scope="module")
def slow_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slow") / "scans.jpg"
    path.write_bytes(many_scans(3000, (4000, 4000)))
    return path


@pytest.fixture(scope="module")
def impatient() -> Iterator[DecoderPool]:
    with DecoderPool(processes=1, limits=SLOW, timeout=timedelta(seconds=1)) as pool:
        yield pool


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_checks_files(decoder: DecoderPool, tmp_path: Path) -> None:
    good = decoder.check(written(tmp_path, "a", sound(0, "JPEG", (40, 30))))
    bad = decoder.check(written(tmp_path, "b", b"no image"))
    assert good.result() == CheckedImage(format="JPEG", width=40, height=30, warning=None)
    rejected = bad.result()
    assert isinstance(rejected, ImageRejected)
    assert rejected.code == "unsupported_image_format"


def test_decodes_for_the_event_loop_as_training_does(decoder: DecoderPool) -> None:
    data = sound(1, "JPEG", (40, 30))

    async def decode_all() -> list[Any]:
        return await asyncio.gather(*(decoder.decode(d) for d in (data, b"no image", data)), return_exceptions=True)

    first, second, third = asyncio.run(decode_all())
    assert first.shape == (30, 40, 3)
    assert first.tobytes() == third.tobytes() == decode_rgb(data).image.tobytes()
    assert first.dtype == np.uint8
    assert isinstance(second, ImageRejected)


def test_thumbnails_are_small_upright_and_made_in_a_child(decoder: DecoderPool) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # on its side
    data = sound(1, "JPEG", (400, 100), exif=turned, comment=b"secret")

    async def make_all() -> list[Any]:
        images = (data, sound(2, "PNG", (10, 8)), b"no image")
        return await asyncio.gather(*map(decoder.thumbnail, images), return_exceptions=True)

    large, small, refused = asyncio.run(make_all())
    with Image.open(io.BytesIO(large)) as image:
        assert (image.format, image.size) == ("JPEG", (32, 128))
        assert not image.getexif()
    assert b"secret" not in large
    with Image.open(io.BytesIO(small)) as image:
        assert image.size == (10, 8)
    assert isinstance(refused, ImageRejected)


def test_slow_image_times_out_and_the_next_is_served(impatient: DecoderPool, slow_file: Path, tmp_path: Path) -> None:
    slow = impatient.check(slow_file)
    good = impatient.check(written(tmp_path, "a", sound()))
    rejected = slow.result()
    assert isinstance(rejected, ImageRejected)
    assert rejected.code == "image_decode_timeout"
    assert isinstance(good.result(), CheckedImage)
    with pytest.raises(ImageRejected, match="too long"):
        asyncio.run(impatient.decode(slow_file.read_bytes()))


def test_killed_child_costs_one_image(slow_file: Path, tmp_path: Path) -> None:
    with DecoderPool(processes=1, limits=SLOW, timeout=timedelta(seconds=30)) as pool:
        assert isinstance(pool.check(written(tmp_path, "a", sound())).result(), CheckedImage)
        idle = {child.pid: _ticks(child.pid) for child in multiprocessing.active_children() if child.pid}
        doomed = pool.check(slow_file)
        after = pool.check(tmp_path / "a")
        with ThreadPoolExecutor() as waiting:
            end = waiting.submit(doomed.result)
            while not end.done():  # of the children of all pools in this process, one burns time over the slow file
                for pid in [pid for pid in idle if _ticks(pid) > idle[pid] + 20]:
                    os.kill(pid, signal.SIGKILL)
                    del idle[pid]
                time.sleep(0.05)
        rejected = end.result()
        assert isinstance(rejected, ImageRejected)
        assert rejected.code == "image_corrupt"
        assert isinstance(after.result(), CheckedImage)


def _ticks(pid: int) -> int:
    """CPU time of a process so far, in hundredths of a second; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "a", sound(2, size=(1500, 1500)))
    limits = ImageLimits(max_pixels=2_250_000)
    with DecoderPool(processes=1, limits=limits) as pool:
        assert isinstance(pool.check(path).result(), CheckedImage)
    monkeypatch.setattr("app.ingest.decoding._MEMORY_BASE", 0)
    # Pillow takes four bytes for a pixel: enough for one image, and for a small one beside it, but not for its copy.
    monkeypatch.setattr("app.ingest.decoding._MEMORY_PER_PIXEL", 6)
    with DecoderPool(processes=1, limits=limits) as pool:
        rejected = pool.check(path).result()
        assert isinstance(rejected, ImageRejected)
        assert rejected.code == "image_corrupt"
        small = written(tmp_path, "b", sound())
        assert isinstance(pool.check(small).result(), CheckedImage)


def test_closed_pool_is_unavailable(tmp_path: Path) -> None:
    pool = DecoderPool(processes=1)
    pool.close()
    with pytest.raises(Unavailable):
        pool.check(tmp_path)


PARENT = """
import sys, time
from pathlib import Path
if __name__ == "__main__":  # the children import this file too
    from app.ingest.decoding import DecoderPool
    pool = DecoderPool(processes=2)
    pool.check(Path(sys.argv[1])).result()
    import multiprocessing
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


def test_children_are_small_and_die_with_their_parent(tmp_path: Path) -> None:
    image = written(tmp_path, "a", sound())
    script = written(tmp_path, "parent.py", PARENT.encode())
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "MUST_SECRET": "x"}
    parent = subprocess.Popen([sys.executable, script, image], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    for pid in pids:
        _wait(lambda pid=pid: "Max address space         unlimited" not in Path(f"/proc/{pid}/limits").read_text())
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "torch" not in maps
        assert "numpy" not in maps
        assert "Max core file size        0" in Path(f"/proc/{pid}/limits").read_text()
    parent.kill()
    parent.communicate()
    _wait(lambda: not any(_is_alive(pid) for pid in pids))


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
