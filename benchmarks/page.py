"""What a page costs: to build, in bytes, and until it is there in headless Chromium."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import markdown
from benchmarks.results import Found
from gradwire.report.offline import PLOTLY, resource
from gradwire.report.tables import format_bytes

# methods, clients, rounds
CASES = {
    "1,000 clients, 500 rounds": (1, 1000, 500),
    "10 methods of 10,000 rounds": (10, 10, 10_000),
}
_REPEATS = 5
_WATCH = """
window.drawn = null;
new MutationObserver(function (_, observer) {
  if (document.querySelector(".main-svg")) { window.drawn = performance.now(); observer.disconnect(); }
}).observe(document, { childList: true, subtree: true });
document.addEventListener("DOMContentLoaded", function () {
  const first = document.querySelector(".plot");
  if (first) { first.scrollIntoView(); }
});
"""
_BUILD = """
import json, resource, sys, time
from gradwire.report import build_report
began = time.perf_counter()
path = build_report(sys.argv[1])
seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak_bytes": 1024 * peak, "page_bytes": path.stat().st_size}))
"""


def measure(data_dir: Path | None = None, only: Any = None) -> Found:
    """Build and open a page of each case, and one of plotly alone."""
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "plotly.html"
        alone.write_text(f"<!doctype html><title>plotly</title><script>{resource(PLOTLY)}</script>")
        seconds = _loaded(alone, charts=False)
    plotly = {"plotly_seconds": seconds["shown_seconds"]} if seconds else {}
    return {"cases": {name: _case(*case) for name, case in CASES.items()}, **plotly}


def document(found: Found) -> dict[str, str]:
    """The table."""
    rows = [
        [
            name,
            f"{case['num_points']:,}",
            format_bytes(case["metrics_bytes"]),
            f"{case['seconds']:.1f} s",
            format_bytes(case["peak_bytes"]),
            format_bytes(case["page_bytes"]),
            *(f"{1000 * case[key]:,.0f} ms" if key in case else "" for key in ("shown_seconds", "chart_seconds")),
        ]
        for name, case in found["cases"].items()
    ]
    headings = ["runs", "rounds", "metrics.jsonl", "built in", "peak memory", "page", "text there", "first chart there"]
    said = markdown.table(headings, rows)
    if "plotly_seconds" in found:
        said += f"\n\nAn empty page that loads plotly and draws nothing: {1000 * found['plotly_seconds']:,.0f} ms."
    return {"docs/report.md#cost": said}


def _case(num_methods: int, num_clients: int, num_rounds: int) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), num_methods, num_clients, num_rounds)
        done = subprocess.run([sys.executable, "-c", _BUILD, folder], capture_output=True, text=True, check=True)
        found: Found = json.loads(done.stdout)
        size = (Path(folder) / "metrics.jsonl").stat().st_size
        loaded = _loaded(Path(folder) / "report.html")
    return {"num_points": num_methods * num_rounds, "metrics_bytes": size, **found, **loaded}


def _loaded(path: Path, charts: bool = True) -> dict[str, float]:
    """Seconds from the start of a navigation, the best of a few: until the text is there, and the first chart."""
    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if browser_path is None:
        return {}
    from playwright.sync_api import sync_playwright

    shown, drawn = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path)
        for _ in range(_REPEATS):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.add_init_script(_WATCH)
            began = time.perf_counter()
            page.goto(path.as_uri())
            shown.append(time.perf_counter() - began)
            if charts:
                page.locator(".main-svg").first.wait_for(state="attached")
                drawn.append(page.evaluate("window.drawn") / 1000)
            page.close()
        browser.close()
    return {"shown_seconds": min(shown), **({"chart_seconds": min(drawn)} if charts else {})}


def write(folder: Path, num_methods: int, num_clients: int, num_rounds: int) -> None:
    """Write runs as the simulator does, of numbers that are made up."""
    draw, methods = random.Random(0), [f"ef(topk({0.1 / (n + 1):.3g}))" for n in range(num_methods)]
    up, down, d = 2000, 40_000, 100_000
    with (folder / "metrics.jsonl").open("w") as file:
        for method in methods:
            for index in range(num_rounds):
                sent = {i: up + draw.randrange(100) for i in range(num_clients)}
                line = {
                    "label": method,
                    "method": method,
                    "seed": 0,
                    "round": index,
                    "accuracy": 1 - 0.9 / (1 + index) ** 0.3 + 0.02 * draw.random(),
                    "loss": draw.random(),
                    "uplink_bytes": sum(sent.values()),
                    "virtual_seconds": 3.5 * index + draw.random(),
                    "num_sent": num_clients,
                    "num_late": 0,
                    "num_lost": 0,
                    "num_idle": 0,
                    "num_kept": num_clients * 1000 + draw.randrange(100),
                    "num_moved": 20_000 + draw.randrange(1000),
                    "overlap": draw.random(),
                    "residual_norm": 3 + draw.random(),
                    "update_norm": 1 + draw.random(),
                    "clients": {str(i): {"uplink": n, "downlink": down} for i, n in sent.items()},
                }
                file.write(json.dumps(line) + "\n")
    summary = {
        "label": "",
        "method": "",
        "seed": 0,
        "clients": num_clients,
        "rounds": num_rounds,
        "final_accuracy": 0.9,
        "uplink_bytes": up * num_clients * num_rounds,
        "downlink_bytes": down * num_clients * num_rounds,
        "other_bytes": 0,
        "dense_uplink_bytes": 4 * d * num_clients * num_rounds,
        "compression_ratio": 4 * d / up,
        "bits_per_parameter": 8 * up / d,
        "model_sha256": "",
        "seconds": 100.0,
        "header_bytes": 0,
        "support_bytes": up // 2 * num_clients * num_rounds,
        "values_bytes": up // 2 * num_clients * num_rounds,
        "compression_seconds": 50.0,
        "virtual_seconds": 3.5 * num_rounds,
    }
    runs = [summary | {"label": method, "method": method} for method in methods]
    (folder / "summary.json").write_text(json.dumps({"experiment": {"num_parameters": d}, "runs": runs}))
