import sys
from pathlib import Path

import pytest
from benchmarks.environments import PEERS, InstallError, constraints, default_torch, install_steps, python_of

from benchmarks import environments


def test_hesse_and_torch_func_use_the_running_interpreter():
    assert python_of("hesse", "torch") == python_of("torch_func", "torch") == Path(sys.executable)


@pytest.mark.parametrize("name", PEERS)
def test_peers_are_constrained_and_bring_no_dependencies(name):
    first, second = install_steps(PEERS[name], "torch", Path("c.txt"))
    assert first == ["-c", "c.txt", "torch", "numpy", "scipy"]
    assert second[:3] == ["-c", "c.txt", "--no-deps"] and PEERS[name].package in second
    assert not any("torchvision" in word for word in second)


def test_an_environment_is_made_once_and_again_when_it_should_hold_something_else(tmp_path, monkeypatch):
    commands = []

    def run(command):
        commands.append(command)
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()

    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "_run", run)
    monkeypatch.setattr(environments, "constraints", lambda: Path("c.txt"))
    python = python_of("opacus", "torch")
    assert python == tmp_path / ".venv-bench-opacus" / "bin" / "python" and len(commands) == 3
    assert python_of("opacus", "torch") == python and len(commands) == 3
    monkeypatch.setattr(Path, "mkdir", lambda *args, **options: None)
    python_of("opacus", "torch==2.99")
    assert len(commands) == 6 and "torch==2.99" in commands[4]


def test_a_failed_installation_says_why_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    with pytest.raises(InstallError, match="no such option"):
        environments._run([sys.executable, "-c", "import sys; sys.exit('no such option')"])
    monkeypatch.setattr(environments, "_run", lambda command: (_ for _ in ()).throw(InstallError("no network")))
    for _ in range(2):
        with pytest.raises(InstallError, match="no network"):
            python_of("opacus", "torch")


def test_the_build_of_torch_follows_the_environment_of_hesse(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert default_torch() == "torch" and constraints() == environments.ROOT / "constraints.txt"
    (tmp_path / ".installed-torch-wanted").write_text("/wheels/torch.whl\n")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0+cpu\n")
    assert default_torch() == "/wheels/torch.whl" and constraints() == tmp_path / "constraints.txt"
    monkeypatch.setenv("TORCH", "torch==2.13.1")
    assert default_torch() == "torch==2.13.1"
