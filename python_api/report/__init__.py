"""The report of a run: one self-contained ``report.html`` and the same figures as PNG files.

``write_report`` reads run folders only. ``reading`` reads one, ``numbers`` derives what is shown,
``words`` states it in sentences, ``charts`` draws it as inline SVG, ``figures`` as PNG files, and
``page`` puts the parts together.
"""

from __future__ import annotations

from python_api.report.page import write_report
from python_api.report.reading import RunData, read_run

__all__ = ["RunData", "read_run", "write_report"]
