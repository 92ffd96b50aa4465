"""The chain without the platform: the same stage functions and the same release, in one process.

    python -m benchmarks.plain        in a checkout with params.yaml and sources.yaml, MLFLOW_TRACKING_URI set

No DVC, no Prefect, no process a stage, no atomic publish. What `lmworks run` takes longer is the platform's price.
"""

from __future__ import annotations

import importlib
import json
import shutil
import time

from components import chain, files
from components.config import load
from components.corpus import sources
from components.layout import Layout
from components.release.release import release


def main() -> None:
    started_s = time.perf_counter()
    layout = Layout()
    config = load(layout.params)
    sources.update(config, layout)
    seconds: dict[str, float] = {}
    for stage in chain.STAGES:
        at_s = time.perf_counter()
        for out in stage.outs:
            layout.out(out).mkdir(parents=True)
        work = layout.work_root / stage.name / "plain"
        report = importlib.import_module(stage.module).run(config, Layout(root=layout.root, work=work))
        files.write_json(layout.out(stage.outs[0]) / "summary.json", {"stage": stage.name, **report.as_dict()})
        for out in stage.outs:
            files.write_manifest(layout.out(out))
        shutil.rmtree(work, ignore_errors=True)
        seconds[stage.name] = time.perf_counter() - at_s
    at_s = time.perf_counter()
    release(config, layout, say=lambda line: None)
    seconds["release"] = time.perf_counter() - at_s
    print(json.dumps({"wall_s": time.perf_counter() - started_s, "seconds": seconds}))


if __name__ == "__main__":
    main()
