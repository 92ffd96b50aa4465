"""A checkout in a folder of its own, with the real code behind it: what the tests of the data stages feed with files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components import chain
from components import config as configuration
from components.corpus import sources
from components.layout import ROOT, Layout
from components.reporting import Report


class Checkout:
    """Settings by keyword (`corpus__source=…`), then `update` and the stages, as `lmworks run` has them run."""

    def __init__(self, root: Path, **flat: Any):
        self.layout = Layout(root=root / "checkout")
        self.layout.root.mkdir(exist_ok=True)
        (self.layout.root / "components").symlink_to(ROOT / "components")
        (self.layout.root / "versions.yaml").write_bytes((ROOT / "versions.yaml").read_bytes())
        self.configure(**flat)

    def configure(self, **flat: Any) -> None:
        self.config = configuration.build({key.replace("__", "."): value for key, value in flat.items()}, where="test")
        self.layout.params.write_text(configuration.render(self.config))

    def update(self) -> bool:
        return sources.update(self.config, self.layout)

    def stage(self, name: str, module: Any = None) -> Report:
        return chain.run_stage(chain.BY_NAME[name], self.layout, self.config, module)

    def attempt(self, name: str) -> dict[str, Any]:
        """How a stage ends that reads its settings itself, as under DVC: exit code and message."""
        return chain.attempt(chain.BY_NAME[name], self.layout)

    def run(self) -> Report:
        self.update()
        self.stage("fetch")
        return self.stage("ingest")

    def table(self, name: str) -> pa.Table:
        return pq.read_table(self.layout.raw / f"{name}.parquet")

    def nothing_half_written(self) -> bool:
        data = self.layout.root / "data"
        return not (data / "raw").exists() and (not self.layout.partial.exists() or not any(self.layout.partial.iterdir()))
