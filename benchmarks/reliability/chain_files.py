"""The kinds of file that a finished chain leaves (benchmarks/reliability/file_kinds.py has the others, and what a kind is)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability.file_kinds import (
    AS_WRITTEN,
    HARMLESS,
    HEALED,
    MISSED,
    NOTICED,
    REFUSED,
    Kind,
    below,
    tree,
)
from components import config as settings
from components import files
from components.errors import UserError
from components.layout import Layout
from components.operations import healing, lock_file, staleness

READ_BY_MLFLOW = ("MLmodel", "model_file.py", "requirements.txt")  # its words, not ours


def of_chain(layout: Layout) -> list[Kind]:
    """The kinds of a checkout in which the chain has run. Its servers may be down."""
    stages = [stage for stage in staleness.names(layout) if healing.locked_outs(layout, stage)]
    maker = {out["path"]: stage for stage in stages for out in healing.locked_outs(layout, stage)}
    whole = {path: tree(layout.root / path) for path in maker}

    def out(path: Path) -> str:
        """What `lmworks run` does with an output of a stage that is fresh."""
        place = next(name for name in maker if path.is_relative_to(layout.root / name))
        found = healing.damage(layout, maker[place])
        if not found:
            return AS_WRITTEN if tree(layout.root / place) == whole[place] else MISSED
        named = path.name in found[0] or path.name == files.MANIFEST
        return HEALED if named and healing.mend(layout, maker[place]) and tree(layout.root / place) == whole[place] else MISSED

    def outs(suffix: Callable[[Path], bool]) -> list[Path]:
        return [path for path in below(*(layout.root / name for name in maker)) if suffix(path)]

    def cached(path: Path) -> str:
        """What `lmworks run` does where an output must come from DVC's cache: a bad object is never handed out."""
        bad = False
        for one in [one for stage in stages for one in healing.locked_outs(layout, stage)]:
            copy = healing.copy_from_cache(layout, one)
            if copy is None:
                bad = True
            elif (found := tree(copy)) != whole[one["path"]]:
                return f"{MISSED}: {sorted(set(found) ^ set(whole[one['path']]))[:2]}"
            if copy:
                shutil.rmtree(copy)
        return REFUSED if bad and not path.exists() else MISSED if bad else AS_WRITTEN

    objects = healing.objects_folder(layout)
    return [
        Kind(name="outputs", files=lambda: outs(lambda path: path.name != files.MANIFEST), use=out, share=6),
        Kind(name="manifests of outputs", files=lambda: outs(lambda path: path.name == files.MANIFEST), use=out, share=2),
        Kind(name="weights", files=lambda: outs(lambda path: path.suffix == ".safetensors"), use=out, share=3),
        Kind(name="objects of DVC's cache", files=lambda: [path for path in below(objects) if path.suffix != ".dir"], use=cached),
        Kind(name="listings of DVC's cache", files=lambda: [path for path in below(objects) if path.suffix == ".dir"], use=cached),
        Kind(name="entries of DVC's run cache", share=2, files=lambda runs=list(lock_file.runs(objects.parent.parent)): runs,
             use=_run_cache(objects.parent.parent)),
        Kind(name="dvc.lock", files=lambda: [layout.dvc_lock], use=_lock(layout, stages), share=0.7),
        Kind(name="sources.yaml", files=lambda: [layout.sources], use=_sources_yaml(layout), share=2),
        *of_stored_models(layout)]


def _run_cache(cache: Path) -> Callable[[Path], str]:
    def read_by_dvc(path: Path) -> dict[str, Any]:
        """All but the sizes of the inputs: they are in no hash, and of an entry DVC takes over the outputs alone."""
        entry = files.load_yaml(path)
        return entry | {"deps": [{key: value for key, value in dep.items() if key not in staleness.NOT_HASHED} for dep in entry["deps"]]}

    written = {path: (path.read_bytes(), read_by_dvc(path)) for path in lock_file.runs(cache)}

    def use(path: Path) -> str:
        """What `lmworks run` asks of it where DVC fails, and `lmworks verify` always. One that is gone counts as none: no empty folder stays."""
        dropped = staleness.drop_damaged_runs(cache)
        if not path.exists():
            return REFUSED if not path.parent.exists() and dropped in ([], [path.name]) else MISSED
        text, content = written[path]
        return MISSED if dropped or read_by_dvc(path) != content else AS_WRITTEN if path.read_bytes() == text else HARMLESS

    return use


def _lock(layout: Layout, stages: list[str]) -> Callable[[Path], str]:
    written = lock_file.read(layout)

    def use(path: Path) -> str:
        """What `lmworks run` asks of dvc.lock. A stage that DVC calls stale runs, or comes from the run cache, and its entry is written anew."""
        before = path.read_bytes() if path.exists() else None
        try:
            if staleness.stale(layout) or lock_file.wrong(layout, stages):
                return NOTICED
            as_it_was = AS_WRITTEN if path.read_bytes() == before else HEALED  # by the copy that is kept of it
            return as_it_was if lock_file.read(layout) == written else MISSED
        except UserError as error:
            return REFUSED if "dvc.lock" in str(error) else MISSED

    return use


def _sources_yaml(layout: Layout) -> Callable[[Path], str]:
    from components.corpus import sources

    config, listed = settings.load(layout.params), layout.sources.read_bytes()

    def use(path: Path) -> str:
        before = path.read_bytes() if path.exists() else None
        sources.update(config, layout)
        return MISSED if path.read_bytes() != listed else AS_WRITTEN if before == listed else HEALED

    return use


def of_stored_models(layout: Layout) -> list[Kind]:
    """Registered models in this checkout's store: as lmworks verifies them, and as a consumer loads them that knows nothing of lmworks."""
    from components.operations import databases

    versions = databases.versions(layout.mlflow_database)
    of = {layout.artifacts / version.folder: version for version in versions if version.folder and version.vouched}

    def loaded(path: Path) -> str:
        from mlflow.exceptions import MlflowException

        from components.release import package, registry

        registry.quiet()
        import mlflow

        folder = next(folder for folder in of if path.is_relative_to(folder))
        with package.no_bytecode():
            try:
                mlflow.pyfunc.load_model(str(folder))
            except MlflowException as error:
                return REFUSED if "refused" in str(error) or path.name in str(error) else f"{MISSED}: {error}"
            except Exception as error:  # noqa: BLE001 - what MLflow reads before our code runs cannot be read any more: nothing was loaded
                return REFUSED if path.name in READ_BY_MLFLOW else f"{MISSED}: {type(error).__name__}: {error}"
        return AS_WRITTEN

    def verified(path: Path) -> str:
        wrong = databases.wrong_with(next(version for folder, version in of.items() if path.is_relative_to(folder)), layout.artifacts)
        return AS_WRITTEN if wrong is None else REFUSED if path.name in wrong or path.name == files.MANIFEST else MISSED

    def stored() -> list[Path]:
        from components.release import model_files

        return [path for path in below(*of) if path.name != model_files.CARD and "__pycache__" not in path.parts]

    return [Kind(name="registered models, verified", files=stored, use=verified, share=3),
            Kind(name="registered models, loaded by a stranger", files=stored, use=loaded, share=3)] if of else []
