"""What a run cost and what it reached, as rows, charts and one self-contained HTML page.

Importing this loads neither plotly nor jinja2; ``build_report`` does, and says which extra to install where
they are missing.
"""

from __future__ import annotations

from gradwire.report.page import build_report

__all__ = ["build_report"]
