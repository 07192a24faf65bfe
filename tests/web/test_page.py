"""The page, driven in a headless Chromium: `make test-web`. Screenshots go to $SCREENSHOTS, if set.

Neither the server nor the page may request anything of another host.
"""

import io
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import PATIENCE, Server, serving, train_tiny_run

pytestmark = pytest.mark.web

FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
).split()
BRUSH = (255, 45, 85)


@pytest.fixture(scope="module")
def server(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("page")
    with serving(train_tiny_run(root, tiny_data), root) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    assert path, "install Chromium, or name one with CHROMIUM="
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(server: Server, browser: Any) -> Iterator[Any]:
    """The page, freshly opened."""
    page = browser.new_page(viewport={"width": 1360, "height": 900})
    page.set_default_timeout(PATIENCE * 1000)
    requested: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.url)
    page.wait_for_selector("#sample-start")
    yield page
    page.close()
    others = [url for url in requested if not url.startswith((server.url, "data:", "blob:"))]
    assert others == []
    assert [text for text in complaints if "Content Security Policy" in text] == []


@pytest.fixture
def screenshot(page: Any, tmp_path: Path) -> Callable[[str], None]:
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    return lambda name: page.screenshot(path=folder / f"{name}.png", full_page=True)


def set_number(page: Any, label: str, value: int) -> None:
    """Type into the box beside a slider."""
    box = page.get_by_label(f"number input for {label}", exact=True).first
    box.fill(str(value))
    box.press("Tab")


def use_seed(page: Any, seed: int) -> None:
    page.locator("#seed textarea, #seed input").first.fill(str(seed))


def finished(page: Any, tab: str, seed: int) -> str:
    """Wait for the end of the sampling with this seed, and return what is said about it."""
    page.wait_for_function(
        "([id, seed]) => { const said = document.querySelector(id).innerText;"
        " return said.includes(' s, ') && said.includes('seed ' + seed); }",
        arg=[f"#{tab}-status", seed],
    )
    return str(page.locator(f"#{tab}-status").inner_text())


def sources_of(page: Any, tab: str) -> list[str]:
    """Addresses of the images of a gallery."""
    sources: list[str] = page.eval_on_selector_all(
        f"#{tab}-images .thumbnail-item img", "images => images.map(image => image.src)"
    )
    return sources


def images_of(page: Any, tab: str) -> list[np.ndarray]:
    """What a gallery shows, as the browser fetched it: (height, width) uint8 each."""
    bodies = [page.request.get(source).body() for source in sources_of(page, tab)]
    return [np.asarray(Image.open(io.BytesIO(body)).convert("L")) for body in bodies]


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < end:
        time.sleep(0.2)
    return true


def has(page: Any, element: str, colour: tuple[int, int, int]) -> int:
    """How many pixels of an element have about this colour."""
    with Image.open(io.BytesIO(page.locator(element).screenshot())) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return int((abs(pixels - colour).max(axis=-1) < 20).sum())


def choose(page: Any, label: str, name: str) -> None:
    """Pick from a menu."""
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=name).click()
    page.keyboard.press("Escape")


def drawn(page: Any, count: int) -> list[np.ndarray]:
    """The first two of so many samples; the number must be another than before."""
    set_number(page, "samples", count)
    page.click("#sample-start")
    page.locator("#sample-status").filter(has_text=f"{count} images in").wait_for()
    return images_of(page, "sample")[:2]


def downloaded(page: Any, button: str) -> tuple[str, bytes]:
    with page.expect_download() as started:
        page.click(button)
    return started.value.suggested_filename, Path(started.value.path()).read_bytes()


def open_edit_tab(page: Any, image: Path) -> None:
    page.get_by_role("tab", name="Edit an image").click()
    page.wait_for_selector("#editor canvas")
    page.locator("#upload").locator("xpath=..").locator("input[type=file]").first.set_input_files(
        image
    )


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """4x4 pixels, white at the left and black at the right."""
    image = Image.new("L", (4, 4), 255)
    image.paste(0, (2, 0, 4, 4))
    image.save(tmp_path / "halves.png")
    return tmp_path / "halves.png"


def test_samples_appear_while_they_refine(page: Any, server: Server, screenshot: Any) -> None:
    set_number(page, "steps", 600)
    use_seed(page, 5)
    page.click("#sample-start")
    seen = set()
    while " s, " not in page.locator("#sample-status").inner_text():
        seen |= set(sources_of(page, "sample")[:1])
        if len(seen) == 2:
            screenshot("refining")
    assert len(seen) >= 3  # the first image changed, and changed again
    assert finished(page, "sample", 5).startswith("5 images in ")
    shown = images_of(page, "sample")
    stored = sorted(server.folder.glob("*/0*.png"))[-5:]
    for pixels, path in zip(shown, stored, strict=True):
        with Image.open(path) as image:  # enlarged, hard pixels staying hard
            assert np.array_equal(pixels[24::48, 24::48], np.asarray(image.convert("L")))
    screenshot("samples")


def test_a_seed_is_shown_and_can_be_used_again(page: Any) -> None:
    set_number(page, "steps", 4)
    page.click("#sample-start")
    said = page.locator("#sample-status")
    said.filter(has_text="5 images in").wait_for()
    seed = said.inner_text().rsplit("seed ", 1)[1].strip(" .\n")
    first = images_of(page, "sample")
    page.click("#reuse")
    box = "document.querySelector('#seed textarea, #seed input').value"
    page.wait_for_function(f"seed => {box} === seed", arg=seed)
    set_number(page, "samples", 3)
    page.click("#sample-start")
    said.filter(has_text="3 images in").wait_for()
    assert said.inner_text().endswith(f"seed {seed}.")
    again = images_of(page, "sample")
    assert len(again) == 3
    assert all(np.array_equal(one, other) for one, other in zip(first, again))
    page.click("#renew")
    page.wait_for_function(f"{box} === ''")


def test_a_value_ends_where_it_began_unless_the_box_says_otherwise(page: Any) -> None:
    set_number(page, "steps", 4)
    use_seed(page, 4)
    set_number(page, "temperature", 0)
    same = drawn(page, 2)
    moves = page.get_by_label("temperature changes", exact=True)
    moves.check()
    page.get_by_label("number input for end temperature", exact=True).wait_for()
    other = drawn(page, 3)  # it ends at 1, where the slider stood all the time
    set_number(page, "end temperature", 0)
    down = drawn(page, 4)
    set_number(page, "end temperature", 1)
    moves.uncheck()
    page.get_by_label("number input for end temperature", exact=True).wait_for(state="detached")
    again = drawn(page, 6)
    assert not np.array_equal(same, other)
    assert np.array_equal(same, down) and np.array_equal(same, again)


def test_a_class_and_a_strategy_are_chosen(page: Any, screenshot: Any) -> None:
    set_number(page, "steps", 4)
    drawn(page, 9)
    names = page.locator("#sample-images .thumbnail-item")
    assert [name.strip() for name in names.all_inner_texts()] == ["zero", "one", "two"] * 3
    assert "4 of 4 steps (renoise)" in page.locator("#sample-status").inner_text()
    choose(page, "class", "two")
    set_number(page, "steps", 17)
    drawn(page, 8)
    assert {name.strip() for name in names.all_inner_texts()} == {"two"}
    assert "17 of 17 steps (random)" in page.locator("#sample-status").inner_text()
    choose(page, "strategy", "halton")
    drawn(page, 7)
    assert "17 of 17 steps (halton)" in page.locator("#sample-status").inner_text()
    page.set_viewport_size({"width": 420, "height": 900})  # a telephone
    boxes = [names.nth(place).bounding_box() for place in range(7)]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 420 for box in boxes)
    screenshot("narrow")


def test_a_history_is_a_film_strip_to_take_home(page: Any, screenshot: Any) -> None:
    set_number(page, "steps", 4)
    page.get_by_label("history").check()
    use_seed(page, 6)
    page.click("#sample-start")
    finished(page, "sample", 6)
    page.wait_for_selector("#sample-film .thumbnail-item img")
    steps = page.locator("#sample-film .thumbnail-item").all_inner_texts()
    assert steps[0].strip() == "step 0" and len(steps) == 5
    page.wait_for_selector("#sample-played img")
    name, body = downloaded(page, "#sample-download-animation")
    with Image.open(io.BytesIO(body)) as played:
        assert (name, played.n_frames) == ("history.webp", len(steps))
    name, body = downloaded(page, "#sample-download-all")
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert {"00000.png", "00004.png", "grid.png"} <= set(archive.namelist())
    name, body = downloaded(page, "#sample-download-grid")
    with Image.open(io.BytesIO(body)) as grid:
        assert name == "grid.png" and grid.width > grid.height
    screenshot("history")


def test_a_painted_hole_is_repainted(
    page: Any, halves: Path, screenshot: Callable[[str], None]
) -> None:
    set_number(page, "steps", 4)
    open_edit_tab(page, halves)
    assert until(lambda: has(page, "#editor", (0, 0, 0)) > 5000)  # the image's right half
    unpainted = has(page, "#editor", BRUSH)

    def painted() -> bool:
        """Touch two pixels of the image, left of its middle, which is that of the canvas."""
        box = page.locator("#editor canvas").first.bounding_box()
        middle, centre = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(middle - 36, centre - 36)
        page.mouse.down()
        page.mouse.move(middle - 36, centre + 36, steps=10)
        page.mouse.up()
        return until(lambda: has(page, "#editor", BRUSH) > unpainted + 500, seconds=5)

    assert until(painted)  # the editor may not have been ready at first
    page.wait_for_timeout(2000)  # for it to hand the stroke on
    screenshot("painted")
    use_seed(page, 7)
    page.click("#edit-start")
    finished(page, "edit", 7)
    edits = np.stack(images_of(page, "edit"))[:, 24::48, 24::48]
    assert edits.shape == (5, 4, 4)
    changed = (edits != np.repeat([255, 0], 2)).any(axis=0)
    assert changed.any()
    hole = np.zeros((4, 4), bool)
    hole[1:3, 1] = True
    assert not changed[~hole].any()  # what is known is kept
    name, _ = downloaded(page, "#edit-download-grid")
    assert name == "grid.png"
    screenshot("inpainted")


def test_outpainting_and_variations(page: Any, halves: Path, screenshot: Any) -> None:
    set_number(page, "steps", 4)
    open_edit_tab(page, halves)
    assert until(lambda: has(page, "#editor", (0, 0, 0)) > 5000)
    page.get_by_label("Outpaint").check()
    page.wait_for_selector("#add-right")
    use_seed(page, 8)
    page.click("#edit-start")
    finished(page, "edit", 8)
    edits = images_of(page, "edit")
    assert {edit.shape for edit in edits} == {(192, 288)}  # 4x4 pixels and two at the right
    left = np.stack(edits)[:, 24::48, 24::48]
    assert (left[..., :2] == 255).all() and (left[..., 2:4] == 0).all()
    screenshot("outpainted")
    page.get_by_label("Image to image").check()
    use_seed(page, 9)
    page.click("#edit-start")
    finished(page, "edit", 9)
    assert {edit.shape for edit in images_of(page, "edit")} == {(192, 192)}


def test_mistakes_are_told_in_the_page(page: Any, tmp_path: Path, screenshot: Any) -> None:
    page.get_by_role("tab", name="Edit an image").click()
    page.click("#edit-start")
    page.get_by_text("choose an image first").first.wait_for()
    bad = tmp_path / "notes.png"
    bad.write_text("not an image")
    open_edit_tab(page, bad)
    page.get_by_text("notes.png cannot be read as an image").first.wait_for()
    use_seed(page, -1)
    page.click("#edit-start")
    page.get_by_text("seed: expected an integer from 0").first.wait_for()
    screenshot("mistakes")
    assert "Traceback" not in page.content()


def test_stopping_leaves_nothing_behind(page: Any, server: Server) -> None:
    before = sorted(server.folder.iterdir())
    page.click("#sample-start")
    page.wait_for_selector("#sample-images .thumbnail-item img")
    said = page.locator("#sample-status")
    page.click("#sample-stop")
    said.filter(has_text="Stopped.").wait_for()
    assert until(lambda: sorted(server.folder.iterdir()) == before)
    page.wait_for_timeout(1000)
    assert said.inner_text().strip() == "Stopped."  # no step has come late
    set_number(page, "steps", 4)
    page.click("#sample-start")  # and the next one is not stopped
    said.filter(has_text="5 images in").wait_for()
