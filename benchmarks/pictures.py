"""The pictures of the README, made by today's code: ``python -m benchmarks.pictures [--only stragglers]``.

``stragglers.png`` is an explorer as Voila shows it. What it shows is computed from seeds, so its digest, which lies in
the file, tells whether today's code would show the same: a test compares them. ``scaling.png`` is a chart of the whole
study, whose measured part is this machine's.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import shutil
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mktsim.study.charts import FINGERPRINT_KEY, write_whole

IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"
#: What the explorer of the README is set to.
STRAGGLERS: Final[dict[str, Any]] = {"hedge": True, "hedge_ms": 4.0, "request": 1, "leaves": 16}
#: The key of a PNG's text that holds the digest of what it shows.
DIGEST_KEY: Final = "mktsim-shown"


def stragglers() -> Any:
    """Return the explorer of the README, as the picture shows it."""
    from mktsim import explore

    made = explore.stragglers()
    for name, value in STRAGGLERS.items():
        made.controls[name].value = value
    return made


def shown(explorer: Any) -> str:
    """Return a digest of what an explorer shows: its texts and tables, and the fingerprints of its pictures."""

    def fingerprint(found: re.Match[str]) -> str:
        return text_of(base64.b64decode(found[1]), FINGERPRINT_KEY)

    drawn = re.sub(r"data:image/png;base64,([^']+)", fingerprint, explorer._result.value)
    labels = [widget.description for widget in (*explorer.controls.values(), *explorer.buttons.values())]
    told = [explorer.title, explorer.about, *labels, repr(explorer.values()), drawn]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def text_of(png: bytes, key: str) -> str:
    """Return a text that lies in a PNG, or nothing."""
    with Image.open(BytesIO(png)) as image:
        return str(image.info.get(key, ""))


def draw_stragglers(path: Path) -> None:
    """Write the explorer as a browser shows it, with the digest of what it shows."""
    from benchmarks import browser

    cell = (
        "from mktsim import explore\nmade = explore.stragglers()\n"
        f"for name, value in {STRAGGLERS!r}.items():\n    made.controls[name].value = value\nmade"
    )
    explorer = stragglers()
    told = text_of_html(explorer._result.value)
    with TemporaryDirectory() as folder, browser.chromium() as chromium:
        with browser.voila(chromium, Path(folder), cell, width=800, height=1600) as page:
            found = browser.explorer(page, "stragglers")
            browser.expect(found.locator(".mktsim-result p").first).to_have_text(told, timeout=60_000)
            picture = found.screenshot()
    about = PngInfo()
    about.add_text(DIGEST_KEY, shown(explorer))
    explorer.close()
    with Image.open(BytesIO(picture)) as image, BytesIO() as out:
        image.convert("RGB").save(out, "PNG", optimize=True, pnginfo=about)
        write_whole(path, out.getvalue())


def text_of_html(made: str) -> str:
    """Return the text of the first paragraph."""
    found = re.search(r"<p[^>]*>([^<]*)</p>", made)
    return "" if found is None else found[1]


def draw_scaling(path: Path) -> None:
    """Run the scaling study and keep its chart of the fan-out within a zone."""
    from mktsim.cli import main as command

    with TemporaryDirectory() as folder:
        if command(["study", "scaling", "--out", folder]):
            raise SystemExit(f"the study failed: {path.name} is as it was")
        shutil.copy(Path(folder) / "fan-out-same-zone.png", path)


PICTURES: Final = {"stragglers": draw_stragglers, "scaling": draw_scaling}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw all pictures, or one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description="The pictures of the README.")
    parser.add_argument("--only", action="append", choices=list(PICTURES), help="one picture; may be given more often")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder, docs/images when absent")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only or PICTURES:
        PICTURES[name](options.out / f"{name}.png")
        print(options.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
