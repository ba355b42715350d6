"""Limits of control groups, read from made-up file systems of both versions."""

from __future__ import annotations

from pathlib import Path

from hesse.core.control_group import UNLIMITED, control_group_available


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def membership(folder: Path, text: str) -> Path:
    path = folder / "cgroup"
    path.write_text(text)
    return path


def test_version_2_the_tightest_group_counts(tmp_path: Path) -> None:
    own = membership(tmp_path, "0::/user.slice/job\n")
    write(tmp_path / "user.slice" / "job", memory__max=1000, memory__current=300, memory__stat="anon 5\ninactive_file 100")
    write(tmp_path / "user.slice", memory__max=5000, memory__current=4500, memory__stat="inactive_file 0")
    assert control_group_available(tmp_path, own) == 500
    write(tmp_path / "user.slice", memory__max="max", memory__current=4500)
    assert control_group_available(tmp_path, own) == 1000 - (300 - 100)


def test_version_2_in_a_container(tmp_path: Path) -> None:
    """The group's own path is that of the host, and only its root is there."""
    own = membership(tmp_path, "0::/kubepods/pod7\n")
    write(tmp_path, memory__max=700, memory__current=800)
    assert control_group_available(tmp_path, own) == 0


def test_version_1(tmp_path: Path) -> None:
    own = membership(tmp_path, "9:name=systemd:/\n4:memory:/job/inner\n0::/\n")
    write(tmp_path / "memory" / "job" / "inner", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=10)
    write(
        tmp_path / "memory" / "job", memory__limit_in_bytes=2000, memory__usage_in_bytes=1500,
        memory__stat="inactive_file 7\ntotal_inactive_file 400",
    )  # fmt: skip
    assert control_group_available(tmp_path, own) == 2000 - 1100


def test_no_group_no_limit(tmp_path: Path) -> None:
    assert control_group_available(tmp_path, tmp_path / "absent") == UNLIMITED
    assert control_group_available(tmp_path, membership(tmp_path, "0::/\n")) == UNLIMITED
    write(tmp_path, memory__max="nonsense", memory__current=1)
    assert control_group_available(tmp_path / ".", membership(tmp_path, "0::/\n")) == UNLIMITED
