"""The pictures of docs/report.md: `python -m tests.make.report_screenshots RUN OTHER FOLDER`, of a run with samples and
another to compare it with."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from mmfast.training.report import report
from tests.make.browser import Tab, browser

WIDTH, HEIGHT = 1240, 780


def main(run: Path, other: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory() as made, browser() as chromium:
        one, both = report([run], Path(made) / "one.html"), report([run, other], Path(made) / "both.html")
        shots = {
            "report": (one, "h1", "light"),
            "report-dark": (one, "h1", "dark"),
            "report-samples": (one, ".sample", "light"),
            "report-compare": (both, "h1", "light"),
        }
        for name, (page, where, scheme) in shots.items():
            view = {"width": WIDTH, "height": HEIGHT}
            tab = Tab(chromium, page.as_uri(), viewport=view, color_scheme=scheme)
            tab.page.evaluate(f"document.querySelector('{where}').scrollIntoView()")
            if where == "h1":
                tab.page.evaluate("scrollTo(0, 0)")
            picture = Image.open(io.BytesIO(tab.page.screenshot()))
            picture.convert("RGB").quantize(192, dither=Image.Dither.NONE).save(target / f"{name}.png", optimize=True)
            tab.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
