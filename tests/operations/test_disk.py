"""A disk that is full, read-only, closed, broken or crowded: one clear line, nothing good lost, and on it goes when that is mended."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from disks import on_a_disk

from components import files, storage
from components.errors import UserError
from components.layout import ROOT, Layout
from components.operations import lock_copy, unclean
from flows import reconciler

pytestmark = pytest.mark.code

# a stage of the chain whose work is one that a test says, in the checkout `disk`
STAGE = """
import json
from types import SimpleNamespace
from components import chain, config, files
from components.layout import Layout
from components.reporting import Report

layout = Layout(root=disk)
stage = chain.BY_NAME["fetch"]

def attempt(run):
    chain.importlib.import_module = lambda _name: SimpleNamespace(run=lambda _config, staged: (run(staged.sources_corpus), Report())[1])
    outcome = chain.attempt(stage, layout)
    print(json.dumps([outcome["exit_code"], outcome.get("message", ""), sorted(path.name for path in (disk / "data/.partial").glob("*"))]))

def checkout():
    for name in ("params.yaml", "versions.yaml", "sources.yaml"):
        (disk / name).write_bytes((chain.ROOT / name).read_bytes())
    (disk / "components").symlink_to(chain.ROOT / "components")
    attempt(lambda folder: (folder / "a.txt").write_text("the good one"))
"""


def lines(output: str) -> list:
    return [json.loads(line) for line in output.splitlines() if line.startswith("[")]


def test_D1_whatever_library_writes_its_word_for_a_full_disk_is_understood(tmp_path: Path):
    told = lines(on_a_disk(tmp_path / "disk", "size=1m", """
import json, sqlite3
import numpy, pyarrow, pyarrow.parquet, torch
from safetensors.torch import save_file
from components import files, storage

def in_sqlite():
    with sqlite3.connect(disk / "a.db") as database:
        database.execute("CREATE TABLE t (b BLOB)")
        database.execute("INSERT INTO t VALUES (?)", (bytes(4_000_000),))

noise = numpy.random.default_rng(0).bytes(4_000_000)
for write in (in_sqlite, lambda: save_file({"a": torch.zeros(1_000_000)}, disk / "a.safetensors"), lambda: torch.save(torch.zeros(1_000_000), disk / "a.pt"),
              lambda: pyarrow.parquet.write_table(pyarrow.table({"a": [noise]}), disk / "a.parquet"), lambda: (disk / "a.bin").write_bytes(noise),
              lambda: files.write_atomic(disk / "a.json", noise), lambda: (disk / "a.csv").open("w").write("x" * 4_000_000)):
    try:
        write()
        print(json.dumps(["written"]))
    except Exception as error:
        print(json.dumps([storage.said(error, disk), str(error)]))
    for left in disk.iterdir():
        left.unlink()
"""))
    assert len(told) == 7
    for line in told:
        assert line[0].startswith(f"no space in {tmp_path / 'disk'}: what is written needs ") and re.search(r"needs (more|[\d.]+ (kB|MB)), [\d.]+ (kB|MB) are free", line[0]), line
    assert "a.json: no space in" in told[5][1] and "needs 4.00 MB" in told[5][1]


def test_D1_what_is_needed_and_what_is_free_are_told_in_units_that_show_them():
    assert [storage.amount(count) for count in (0, 1, 4096, 999_999, 1_000_000, 12_345_678)] == ["0 kB", "1 kB", "5 kB", "1,000 kB", "1.00 MB", "12 MB"]


def test_D1_a_stage_on_a_full_disk_says_so_leaves_nothing_half_and_goes_on_when_there_is_space(tmp_path: Path):
    made, full, at_the_end, again = lines(on_a_disk(tmp_path / "disk", "size=2m", STAGE + """
checkout()
attempt(lambda folder: (folder / "b.bin").write_bytes(bytes(8_000_000)))
files.verify_manifest(layout.sources_corpus)
assert (layout.sources_corpus / "a.txt").read_text() == "the good one"
attempt(lambda folder: fill())  # nothing is left for the summary and the manifest
files.verify_manifest(layout.sources_corpus)
(disk / "ballast").unlink()
remount("size=16m")
attempt(lambda folder: (folder / "b.bin").write_bytes(bytes(8_000_000)))
assert set(files.verify_manifest(layout.sources_corpus)["files"]) == {"b.bin", "summary.json"}
"""))
    assert made[0] == again[0] == 0
    assert full[0] == 2 and full[1].startswith(f"no space in {tmp_path / 'disk/data/.partial'}") and "lmworks clean --dry-run" in full[1]
    assert at_the_end[0] == 2 and "no space in" in at_the_end[1]
    assert not full[2] and not at_the_end[2]


def test_D7_a_disk_without_room_for_one_more_file_says_that_it_is_not_the_bytes(tmp_path: Path):
    made, crowded, again = lines(on_a_disk(tmp_path / "disk", "size=8m,nr_inodes=40", STAGE + """
checkout()
attempt(lambda folder: [(folder / f"{n}.txt").write_text("x") for n in range(60)])
files.verify_manifest(layout.sources_corpus)
remount("nr_inodes=500")
attempt(lambda folder: [(folder / f"{n}.txt").write_text("x") for n in range(60)])
"""))
    assert made[0] == again[0] == 0
    assert crowded[0] == 2 and "room for no further file (all 40 inodes are taken" in crowded[1] and not crowded[2]


def test_D7_too_few_open_files_are_refused_before_the_work_and_named_in_it(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", """
import resource, sys
from pathlib import Path
from components import chain, storage
from components.layout import Layout
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
print(chain.attempt(chain.BY_NAME["fetch"], Layout(root=Path(sys.argv[1])))["message"])
taken = []
try:
    while True:
        taken.append(open("/dev/null"))
except OSError as error:
    print(storage.said(error, Path(sys.argv[1])))
"""
, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    before, within = done.stdout.splitlines()
    assert before.startswith("too few files may be open here: 64; a run needs 256") and "ulimit -n 4096" in before
    assert within.startswith("too many open files: at most 64 may be open here. Raise that (ulimit -n 4096)")
    soft = subprocess.run([sys.executable, "-c", "import resource; from components import storage\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 1000))\n"
                           "storage.check_open_files(); print(resource.getrlimit(resource.RLIMIT_NOFILE))"], capture_output=True, text=True, cwd=ROOT)
    assert soft.stdout == "(1000, 1000)\n", "a soft limit is raised as far as it goes"


def test_D6_a_read_only_disk_is_named_and_the_stage_runs_when_it_is_writable_again(tmp_path: Path):
    made, closed, whole_disk, again = lines(on_a_disk(tmp_path / "disk", "size=4m", STAGE + """
checkout()
def closing(folder):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], check=True)
    try:
        (folder / "b.txt").write_text("x")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
attempt(closing)
remount("ro")
attempt(lambda folder: None)
files.verify_manifest(layout.sources_corpus)
remount("rw")
attempt(lambda folder: (folder / "b.txt").write_text("x"))
"""))
    assert made[0] == again[0] == 0
    assert closed[0] == 2 and closed[1].startswith(f"cannot write in {tmp_path / 'disk/data/.partial/sources-corpus'}.") and "its disk is read-only" in closed[1]
    assert whole_disk[0] == 1 and whole_disk[1].startswith(f"cannot write in {tmp_path / 'disk/.lmworks'}: its disk is read-only")


def test_D6_no_permission_names_the_path_and_the_user(tmp_path: Path):
    if os.getuid() == 0:  # pytest's own folder is closed to others
        tmp_path = Path(tempfile.mkdtemp())
        tmp_path.chmod(0o755)
    (tmp_path / "closed").mkdir(mode=0o555)
    done = subprocess.run([sys.executable, "-c", """
import os, sys
from pathlib import Path
from components import files, storage
from components.errors import UserError
if os.getuid() == 0:
    os.setuid(65534)
try:
    files.write_json(Path(sys.argv[1]) / "a.json", {})
except UserError as error:
    print(error)
try:
    (Path(sys.argv[1]) / "folder").mkdir()
except OSError as error:
    print(storage.said(error, Path("/")))
""", str(tmp_path / "closed")], capture_output=True, text=True, cwd=ROOT)
    first, second = done.stdout.splitlines()
    user = 65534 if os.getuid() == 0 else os.getuid()
    assert first.startswith(f"cannot write {tmp_path / 'closed/a.json'}: no permission for ") and f"as user {user}" in first
    assert second.startswith(f"no permission for {tmp_path / 'closed/folder'} as user {user}") and "chown, chmod" in second
    shutil.rmtree(tmp_path)


def test_D6_a_disk_that_breaks_is_told_as_such_and_may_be_tried_again(tmp_path: Path):
    script = "from pathlib import Path\ndisk = Path(sys.argv[1])\n" + STAGE + """
checkout()
attempt(lambda folder: (_ for _ in ()).throw(OSError(5, "Input/output error", str(folder / "b.bin"))))
"""
    _, broken = lines(subprocess.run([sys.executable, "-c", "import sys\n" + script, str(tmp_path)], capture_output=True, text=True, cwd=ROOT).stdout)
    assert broken[0] == 1, "the one exit code that is tried again, where trying again can help"
    assert broken[1].startswith(f"{tmp_path / 'data/.partial/sources-corpus'}.") and "/b.bin: its disk does not read or write any more" in broken[1] and "dmesg" in broken[1]
    failing = subprocess.run([sys.executable, "-c", f"from pathlib import Path\nfrom components import files\nfiles.write_json(Path({str(tmp_path)!r}) / 'a.json', 1)"],
                             env={**os.environ, "FAILPOINTS": "files.before_fsync@a.json=eio"}, capture_output=True, text=True, cwd=ROOT)
    assert "a.json: " in failing.stderr and "does not read or write any more (Input/output error)" in failing.stderr
    assert not (tmp_path / "a.json").exists() and not list(tmp_path.glob(".*.partial"))


def test_D8_the_working_folder_removed_in_the_middle_of_a_stage_is_named_and_nothing_is_published(tmp_path: Path):
    script = "import shutil\n" + STAGE + """
checkout()
attempt(lambda folder: shutil.rmtree(disk / "data/.partial") or (folder / "b.txt").write_text("x"))
files.verify_manifest(layout.sources_corpus)
assert (layout.sources_corpus / "a.txt").exists()
"""
    _, gone = lines(on_a_disk(tmp_path / "disk", "size=4m", script))
    assert gone[0] == 1 and "No such file or directory" in gone[1] and "data/.partial/sources-corpus." in gone[1] and "/b.txt" in gone[1]


# --- training ------------------------------------------------------------------------------------

TRAINING = """
import json, hashlib
import tiny_training
from components.errors import UserError
from components.training import loop

def train(**more):
    try:
        model, _ = tiny_training.train(disk / "checkpoints", **more)
        words = hashlib.sha256(b"".join(tiny_training.weights(model).values())).hexdigest()
    except UserError as error:
        words = str(error)
    left = sorted(path.name for path in (disk / "checkpoints").iterdir())
    print(json.dumps([words, left]))

class At:
    def __init__(self, step, do):
        self.step, self.do = step, do
    def log(self, step, metrics):
        if step == self.step:
            self.do()
    def flush(self):
        pass
"""


def test_D1_D2_too_little_space_is_refused_before_the_first_step_and_a_disk_that_fills_up_keeps_the_last_checkpoint(tmp_path: Path):
    whole, refused, filled, goes_on = lines(on_a_disk(tmp_path / "disk", "size=8m", TRAINING + """
train()
subprocess.run(["rm", "-r", str(disk / "checkpoints")])
fill(but=1_100_000)  # one and a half checkpoints, and the spare megabyte
train(run=At(5, lambda: 1 / 0))
(disk / "ballast").unlink()
train(run=At(10, fill))
(disk / "ballast").unlink()
train()
"""))
    assert refused[0].startswith(f"no space in {tmp_path / 'disk/checkpoints'}: this training, with its checkpoints and its model, needs ")
    assert refused[1] == [], "and nothing was trained"
    assert filled[0].startswith(f"no space in {tmp_path / 'disk/checkpoints'}: a checkpoint needs ") and "it goes on from the last checkpoint" in filled[0]
    assert filled[1] == ["step-00000004", "step-00000008"]
    assert goes_on[0] == whole[0], "the same weights as an undisturbed training"


@pytest.mark.parametrize("place", ["train.ckpt.before_write", "train.ckpt.mid_write", "files.write@manifest.json"])
def test_D1_a_disk_that_is_full_within_a_checkpoint_leaves_the_one_before(tmp_path: Path, place: str):
    at = place if "@" in place else f"{place}@12"
    (told,) = lines(on_a_disk(tmp_path / "disk", "size=8m", TRAINING + "train()\n", env={"FAILPOINTS": f"{at}=enospc"}))
    assert f"cannot write a checkpoint in {tmp_path / 'disk/checkpoints'}: no space in" in told[0]
    assert told[1] == ([] if "@" in place else ["step-00000004", "step-00000008"])


# --- what a crash leaves -------------------------------------------------------------------------

def test_D11_the_next_start_removes_thousands_of_temporary_files_of_ours_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    layout, dead = Layout(root=tmp_path), 2**22 + 1
    for folder in (layout.state, layout.out("clean"), layout.work_root, layout.partial / "clean"):
        folder.mkdir(parents=True)
    for number in range(3000):
        (layout.state / f".release-{number}.json.{dead}.partial").touch()
    others = [layout.out("clean") / "x.partial", layout.work_root / ".notes.partial", layout.state / f".now.json.{os.getpid()}.partial", layout.root / "my.partial"]
    for path in others:
        path.write_text("not ours, or in use")
    reused = layout.work_root / f".cache.json.{os.getpid()}.partial"
    reused.write_text("of a process that had our number long before us")
    long_ago_s = time.time() - 30 * 86_400
    os.utime(reused, (long_ago_s, long_ago_s))
    files.write_json(layout.unclean / "run-1.json", {"pid": dead, "started": "never"})
    assert unclean.dead(layout)
    assert "3002 temporary files removed" in reconciler.reconcile(layout)  # with the folder below data/.partial and the reused one
    assert not list(layout.state.glob(".release-*")) and not reused.exists() and not layout.partial.exists()
    assert all(path.exists() for path in others)


def test_D1_a_lock_file_of_dvc_that_a_full_disk_cut_is_put_back(tmp_path: Path):
    layout = Layout(root=tmp_path)
    stages = {name: {"cmd": f"python {name}.py", "outs": [{"path": f"data/{name}", "md5": "0" * 32}]} for name in ("fetch", "ingest", "clean")}
    whole = yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False)
    files.write_atomic(layout.dvc_lock, whole)
    assert lock_copy.whole(layout.dvc_lock)
    lock_copy.keep(layout)
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        layout.dvc_lock.write_text(whole[:cut])
        lock_copy.keep(layout)  # a cut one is never kept
        assert lock_copy.mend(layout) and layout.dvc_lock.read_text() == whole
        assert (layout.state / "dvc.lock.cut").read_text() == whole[:cut]
    layout.dvc_lock.write_text("schema: '2.0'\nstages: {}\n")
    assert not lock_copy.mend(layout), "what a person did is left alone"


def test_errors_that_are_no_disk_s_are_left_alone(tmp_path: Path):
    for error in (FileNotFoundError(2, "No such file or directory", "x"), ValueError("row 5 of 28"), ConnectionRefusedError(111, "refused")):
        assert storage.said(error, tmp_path) is None
        with pytest.raises(type(error)), storage.explained(tmp_path):
            raise error
    with pytest.raises(UserError, match="row 7"), storage.explained(tmp_path):
        raise UserError("row 7 is empty")
    assert storage.tight(tmp_path) == "" or "no space" in storage.tight(tmp_path)
