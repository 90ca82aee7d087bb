"""Pictures of pages for the docs: python -m tools.screenshots [NAME ...] [--runs FOLDER] writes docs/NAME.png.

A picture whose runs are an experiment file runs it first, in a folder below FOLDER where it goes on if it is there
already; headless Chromium then takes the picture. Real data is found through GRADWIRE_DATA.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.rooms import ROOT

# what is above the charts, and the first four
_TOP = 2055


@dataclass(frozen=True)
class Shot:
    """A picture of a page.

    Attributes:
        name: docs/NAME.png is the picture.
        runs: what the page shows, below the repository: an experiment file, or folders of runs.
        theme: ``light`` or ``dark``.
        width: of the window, CSS pixels.
        height: how much of the page, CSS pixels.
        start: where on the page it begins, a CSS selector; its top when empty.
    """

    name: str
    runs: tuple[str, ...]
    theme: str = "light"
    width: int = 1280
    height: int = _TOP
    start: str = ""


SHOTS = (
    Shot("page-50-clients", ("experiments/fifty-clients.toml",)),
    Shot("page-50-clients-narrow", ("experiments/fifty-clients.toml",), "dark", 390, 1300, "#charts"),
    Shot("page-language", ("experiments/language.toml",)),
)


def main() -> None:
    """Take some of the pictures, or all."""
    parser = argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(shot.name for shot in SHOTS)}")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "screenshots", help="where experiments are run")
    given = parser.parse_args()
    unknown = set(given.names) - {shot.name for shot in SHOTS}
    if unknown:
        parser.error(f"no such picture: {', '.join(sorted(unknown))}")
    for shot in SHOTS:
        if not given.names or shot.name in given.names:
            picture = ROOT / "docs" / f"{shot.name}.png"
            picture.write_bytes(_small(_taken(shot, _page(shot, given.runs))))
            sys.stdout.write(f"{picture.relative_to(ROOT)}: {picture.stat().st_size:,} bytes\n")


def _page(shot: Shot, runs: Path) -> Path:
    """The page, after the runs that it is about."""
    folders = [_folder(ROOT / path, runs) for path in shot.runs]
    page = runs / f"{shot.name}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    _gradwire("report", *folders, "--out", page)
    return page


def _folder(path: Path, runs: Path) -> Path:
    if path.suffix != ".toml":
        return path
    folder = runs / path.stem
    there = (folder / "experiment.toml").is_file()
    _gradwire("run", *(["--resume", folder] if there else [path, "--out", folder]))
    return folder


def _gradwire(*arguments: Path | str) -> None:
    subprocess.run([sys.executable, "-m", "gradwire", *map(str, arguments)], check=True)


def _taken(shot: Shot, page: Path) -> bytes:
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        sys.exit("no chromium: apt-get install chromium, or say where it is in the variable CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        size = {"width": shot.width, "height": shot.height}
        shown = browser.new_page(viewport=size, color_scheme=shot.theme, reduced_motion="reduce")
        shown.goto(page.resolve().as_uri())
        if shot.start:
            top = shown.locator(shot.start).bounding_box()["y"]
            shown.evaluate(f"scrollTo(0, {top - 16})")
        plots = "[...document.querySelectorAll('.plot')].filter(box => box.getBoundingClientRect().top < innerHeight)"
        for _ in range(600):  # the page's policy lets no playwright wait_for_function in
            if shown.evaluate(f"{plots}.every(box => box.querySelector('.main-svg'))"):
                break
            shown.wait_for_timeout(100)
        else:
            sys.exit(f"{page}: a chart was not drawn within a minute")
        picture = bytes(shown.screenshot())
        browser.close()
    return picture


def _small(picture: bytes) -> bytes:
    """A picture in 256 colours: half the bytes, and no eye sees it in lines on a plain ground."""
    from PIL import Image

    file = io.BytesIO()
    colours = (
        Image.open(io.BytesIO(picture))
        .convert("RGB")
        .quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    )
    colours.save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    main()
