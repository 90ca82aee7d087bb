"""What a run cost and what it reached, as rows, charts and one self-contained HTML page.

Importing this does not load jinja2; ``build_report`` does, and says which extra to install where it is missing. Charts
are drawn by plotly's JavaScript, whose smallest bundle is shipped (``vendored/``).
"""

from __future__ import annotations

from gradwire.report.page import build_report

__all__ = ["build_report"]
