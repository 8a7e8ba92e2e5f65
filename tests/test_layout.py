from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from finetune_sweep import durable
from finetune_sweep.durable import (
    MANIFEST,
    DurableFile,
    check_folder,
    folder_aside,
    recover_folder,
    remove_folder,
    remove_leftovers,
    sha256,
    temporary_folder,
    write_atomic,
)
from finetune_sweep.errors import StorageError, SweepLocked, UserError
from finetune_sweep.exchange import exchange
from finetune_sweep.layout import Layout, parse_storage
from finetune_sweep.lock import SweepLock, is_locked, read_owner


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "runs", "bert")


def in_another_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------------------------------ paths


def test_a_storage_is_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_storage("runs") == tmp_path / "runs"
    assert parse_storage("/data/runs") == Path("/data/runs")
    assert parse_storage("file:///data/runs") == Path("/data/runs")
    assert parse_storage("~/runs") == Path.home() / "runs"
    with pytest.raises(UserError, match=r"s3:// is not supported yet, got 's3://bucket/runs'"):
        parse_storage("s3://bucket/runs")


def test_segments_are_numbered_in_order(layout: Layout) -> None:
    assert layout.next_segment().name == "000001.jsonl"
    for number in (1, 2, 10):
        DurableFile(layout.journal / f"{number:06d}.jsonl").close()
    assert [segment.name for segment in layout.segments()] == ["000001.jsonl", "000002.jsonl", "000010.jsonl"]
    assert layout.next_segment().name == "000011.jsonl"


# ------------------------------------------------------------------------------------------------------ files


def test_a_file_is_replaced_at_once_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, b"old")
    code = """
        import resource, signal, sys
        from pathlib import Path
        from finetune_sweep.errors import StorageError
        from finetune_sweep.durable import write_atomic

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            write_atomic(Path(sys.argv[1]), b"n" * 1000)
        except StorageError as error:
            print(error)
    """
    done = in_another_process(code, str(path))
    assert f"{path} could not be written: " in done.stdout
    assert path.read_bytes() == b"old"


def write_to_a_full_disk() -> None:
    Path("/dev/full").write_text("x")


def write_tensors_to_a_full_disk() -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("write", [write_to_a_full_disk, write_tensors_to_a_full_disk])
def test_a_full_disk_is_the_storage_s_fault_whoever_writes(write: Callable[[], None], tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"target could not be written: the disk is full"),
        folder_aside(tmp_path / "target"),
    ):
        write()
    assert not list(tmp_path.iterdir())


def test_what_kills_left_half_written_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".best.7.tmp").mkdir()
    (tmp_path / ".best.7.tmp" / "config.json").touch()
    (tmp_path / ".sweep.lock.yaml.7.tmp").touch()
    (tmp_path / "sweep.lock.yaml").touch()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.lock.yaml"]


def test_a_durable_file_grows_and_is_never_overwritten(tmp_path: Path) -> None:
    file = DurableFile(tmp_path / "journal" / "000001.jsonl")
    file.append(b"one\n")
    file.append(b"two\n")
    file.close()
    assert file.path.read_bytes() == b"one\ntwo\n"
    with pytest.raises(StorageError, match=r"000001\.jsonl could not be written"):
        DurableFile(file.path)


def test_an_append_that_fails_leaves_no_part_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "000001.jsonl"
    code = """
        import resource, signal, sys
        from pathlib import Path
        from finetune_sweep.errors import StorageError
        from finetune_sweep.durable import DurableFile

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        file = DurableFile(Path(sys.argv[1]))
        file.append(b"first\\n")
        try:
            file.append(b"n" * 1000 + b"\\n")
        except StorageError as error:
            print(error)
        file.append(b"last\\n")
    """
    done = in_another_process(code, str(path))
    assert f"{path} could not be written" in done.stdout
    assert path.read_bytes() == b"first\nlast\n"


# ---------------------------------------------------------------------------------------------------- folders


def filled(target: Path, content: bytes) -> Path:
    with folder_aside(target) as aside:
        (aside / "nested").mkdir()
        (aside / "nested" / "weights").write_bytes(content)
        (aside / "config.json").write_bytes(b"{}")
    return target


def test_a_folder_appears_whole_with_a_manifest(tmp_path: Path) -> None:
    target = tmp_path / "trials" / "a"
    with folder_aside(target) as aside:
        (aside / "weights").write_bytes(b"12345")
        assert not target.exists()
    assert json.loads((target / MANIFEST).read_bytes()) == {
        "weights": {"bytes": 5, "sha256": sha256(target / "weights")}
    }
    check_folder(target)
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    target = filled(tmp_path / "best", b"old")
    (target / "only-in-the-old-one").touch()
    filled(target, b"new")
    assert (target / "nested" / "weights").read_bytes() == b"new"
    assert not (target / "only-in-the-old-one").exists()
    check_folder(target)
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_whose_making_fails_leaves_the_older_one(tmp_path: Path) -> None:
    target = filled(tmp_path / "best", b"old")
    with contextlib.suppress(FileExistsError), folder_aside(target) as aside:
        (aside / "half").mkdir()
        (aside / "half").mkdir()
    assert (target / "nested" / "weights").read_bytes() == b"old"
    check_folder(target)
    assert list(tmp_path.iterdir()) == [target]


def test_two_folders_change_places_in_one_step(tmp_path: Path) -> None:
    one, other = filled(tmp_path / "one", b"1"), filled(tmp_path / "other", b"2")
    assert exchange(one, other) == (sys.platform == "linux")
    if sys.platform == "linux":
        assert (one / "nested" / "weights").read_bytes() == b"2"
        assert (other / "nested" / "weights").read_bytes() == b"1"
        with pytest.raises(OSError, match="No such file"):
            exchange(one, tmp_path / "none")


def test_where_folders_cannot_change_places_two_renames_replace_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "exchange", lambda *_: False)
    target = filled(filled(tmp_path / "best", b"old"), b"new")
    assert (target / "nested" / "weights").read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_between_the_two_renames_is_recovered(tmp_path: Path) -> None:
    target = filled(tmp_path / "best", b"old")
    target.rename(tmp_path / ".best.old")
    recover_folder(target)
    check_folder(target)
    assert list(tmp_path.iterdir()) == [target]
    recover_folder(target)
    check_folder(target)


def test_the_remains_of_a_replacement_do_not_win_over_the_new_folder(tmp_path: Path) -> None:
    target = filled(tmp_path / "best", b"old")
    target.rename(tmp_path / ".best.old")
    (tmp_path / "best").mkdir()
    recover_folder(target)
    assert list(tmp_path.iterdir()) == [target]
    assert not list(target.iterdir())


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    target = filled(tmp_path / "best", bytes(1000))
    weights = target / "nested" / "weights"
    weights.write_bytes(bytes(500) + b"\x01" + bytes(499))
    with pytest.raises(StorageError, match=r"nested/weights is damaged: its manifest says .* found"):
        check_folder(target)


def test_a_missing_file_and_a_missing_manifest_are_found(tmp_path: Path) -> None:
    target = filled(tmp_path / "best", b"new")
    (target / "config.json").unlink()
    with pytest.raises(StorageError, match=r"config\.json is missing"):
        check_folder(target)
    (target / MANIFEST).write_bytes(b"{")
    with pytest.raises(StorageError, match="no valid manifest"):
        check_folder(target)
    (target / MANIFEST).unlink()
    with pytest.raises(StorageError, match="no valid manifest"):
        check_folder(target)


@pytest.mark.parametrize("manifest", [b"[]", b"null", b"3"])
def test_a_manifest_that_is_no_list_of_files_is_not_valid(tmp_path: Path, manifest: bytes) -> None:
    target = filled(tmp_path / "best", b"new")
    (target / MANIFEST).write_bytes(manifest)
    with pytest.raises(StorageError, match="no valid manifest"):
        check_folder(target)


def test_a_removed_folder_is_gone(tmp_path: Path) -> None:
    target = filled(tmp_path / "best", b"new")
    remove_folder(target)
    remove_folder(target)
    assert not target.exists()


# --------------------------------------------------------------------------------------------------- the lock

HOLD = """
    import sys
    from pathlib import Path
    from finetune_sweep.layout import Layout
    from finetune_sweep.lock import SweepLock

    with SweepLock(Layout(Path(sys.argv[1]), "bert")) as lock:
        print(lock.owner.pid, flush=True)
        sys.stdin.read()
"""
TAKE = """
    import sys
    from pathlib import Path
    from finetune_sweep.errors import SweepLocked
    from finetune_sweep.layout import Layout
    from finetune_sweep.lock import SweepLock

    try:
        with SweepLock(Layout(Path(sys.argv[1]), "bert")) as lock:
            print("token", lock.owner.token)
    except SweepLocked as error:
        print(error)
"""


def test_a_second_driver_is_told_who_holds_the_sweep(layout: Layout) -> None:
    with SweepLock(layout) as lock:
        assert is_locked(layout)
        assert read_owner(layout) == lock.owner
        refused = in_another_process(TAKE, str(layout.storage)).stdout
        assert f"the sweep 'bert' in {layout.storage} is driven by process {os.getpid()} on" in refused
        assert lock.owner.host in refused
        with pytest.raises(SweepLocked, match=f"process {os.getpid()}"):
            SweepLock(layout)
    assert not is_locked(layout)


def test_the_lock_of_a_killed_driver_is_taken_over_with_a_higher_token(layout: Layout) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(layout.storage)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert int(holder.stdout.readline()) == holder.pid
        with pytest.raises(SweepLocked, match=f"driven by process {holder.pid} "):
            SweepLock(layout)
        holder.kill()
        holder.wait()
    assert not is_locked(layout)
    with SweepLock(layout) as lock:
        assert (lock.owner.token, lock.owner.pid) == (2, os.getpid())
    assert in_another_process(TAKE, str(layout.storage)).stdout.strip() == "token 3"


def test_nobody_holds_a_sweep_that_never_ran(layout: Layout) -> None:
    assert not is_locked(layout)
    assert read_owner(layout) is None


def test_looking_at_the_lock_does_not_keep_a_driver_from_it(layout: Layout) -> None:
    with SweepLock(layout):
        pass
    code = """
        import sys
        from pathlib import Path
        from finetune_sweep.layout import Layout
        from finetune_sweep.lock import is_locked

        layout = Layout(Path(sys.argv[1]), "bert")
        print("looking", flush=True)
        while True:
            is_locked(layout)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(layout.storage)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        try:
            for _ in range(50):
                with SweepLock(layout):
                    pass
        finally:
            watcher.kill()


def test_a_damaged_lock_file_does_not_keep_the_sweep_closed(layout: Layout) -> None:
    write_atomic(layout.lock, b"{")
    with SweepLock(layout) as lock:
        assert lock.owner.token == 1


@pytest.mark.parametrize(
    "path", ["../bert2/trials/a", "/etc", "trials/../../x", ".", "", "journal", "trials"]
)
def test_a_path_of_the_journal_that_leads_out_of_the_sweep_is_refused(path: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path, "bert")

    assert layout.within("trials/a/epoch-0001") == layout.root / "trials" / "a" / "epoch-0001"
    with pytest.raises(StorageError, match="leads out of its trials"):
        layout.within(path)


def test_a_temporary_folder_that_a_kill_left_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    in_another_process(
        """
        import os, signal
        from finetune_sweep.durable import temporary_folder
        with temporary_folder() as folder:
            (folder / "model").write_bytes(b"weights")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    (left,) = tmp_path.iterdir()

    with temporary_folder() as new:
        assert left.exists()  # it may be that of a process that has not locked it yet
        os.utime(left, (0, 0))
        os.utime(new, (0, 0))
        with temporary_folder() as newest:
            assert sorted(tmp_path.iterdir()) == sorted([new, newest])
    assert list(tmp_path.iterdir()) == []
