"""A whole federation on 127.0.0.1: real processes, TLS on, tiny volumes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.end_to_end.tiny_run import (
    SOURCES,
    TARGET,
    TinyRun,
    changed,
    command,
    make_patient,
    write_nifti,
)
from tests.ports import free_port

PROJECT = Path(__file__).parents[2]
SITES = ("east", "north", "west")
NORTH_PATIENTS = 5
PATIENT_COUNT_STEP = 5


@dataclass(frozen=True)
class Farewell:
    """How a site stopped when it was told to.

    Attributes:
        was_up: whether it was running until then.
        code: its exit code.
        children: the processes that it had.
    """

    was_up: bool
    code: int
    children: list[int]


@dataclass
class Federation:
    """Folders, settings and processes of one server and its sites.

    `site_changes` are keys of every site's settings.
    """

    folder: Path
    tiny: TinyRun
    sites: tuple[str, ...] = SITES
    site_changes: dict[str, object] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    farewells: dict[str, Farewell] = field(default_factory=dict)

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.folder / "server"

    @property
    def out(self) -> Path:
        """What the run leaves."""
        return self.server / "run"

    def site(self, name: str) -> Path:
        """A site's folder."""
        return self.folder / "sites" / name

    def make(self, **plan: object) -> None:
        """Provision everything with the real commands; `plan` changes keys of the plan."""
        run("lift-server", "init", self.server, "--host", "localhost", "--name", "test")
        settings = yaml.safe_load((self.server / "server.yaml").read_text(encoding="utf-8"))
        settings |= {
            "address": f"localhost:{free_port()}",
            "control_port": free_port(),
            "health_port": free_port(),
            "page_port": None,
            "generator": {"bundle": str(self.tiny.bundle)},
            "wait_for_sites_s": 120.0,
            # a test that misses a quorum wants its end, unless it says otherwise
            "decision_within_s": 0.0,
            "plan": changed(tiny_plan(), plan),
        }
        # what an enrolled site's policy asks for
        settings["plan"]["federation"] |= {"patient_count_step": PATIENT_COUNT_STEP}
        settings["listen_host"] = "127.0.0.1"
        settings["listen_port"] = int(settings["address"].split(":")[1])
        self.write_server(settings)
        for name in self.sites:
            self.enrol(name, **self.site_changes)

    def write_server(self, settings: dict[str, Any]) -> None:
        """Replace server.yaml."""
        (self.server / "server.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    def server_settings(self) -> dict[str, Any]:
        """The content of server.yaml."""
        return dict(yaml.safe_load((self.server / "server.yaml").read_text(encoding="utf-8")))

    def enrol(self, name: str, **changes: object) -> None:
        """Enrol one site: key at the site, admission at the server, kit back."""
        folder = self.site(name)
        run("lift-client", "enroll", name, "--folder", folder)
        run("lift-server", "add-site", self.server, name, folder / "site.pub")
        shutil.copytree(self.server / "kits" / name, folder / "kit")
        settings = yaml.safe_load((folder / "site.yaml").read_text(encoding="utf-8"))
        settings |= {
            "data": {"layout": "brats", "root": str(self.tiny.site(name))},
            "generator": {"bundle": str(self.tiny.bundle)},
            "local_port": free_port(),
            "device": "cpu",
        }
        settings["policy"]["privacy_modes"] = ["none"]
        # the tiny volumes are random ellipsoids: no pair for the image checks
        settings["policy"]["image_checks"] = False
        text = yaml.safe_dump(changed(settings, changes))
        (folder / "site.yaml").write_text(text, encoding="utf-8")

    def break_site(self, name: str, secret: str) -> None:
        """Give a site volumes that cannot be used, in files whose names hold `secret`."""
        folder = self.site(name)
        root = folder / secret
        patient = root / f"BraTS-TST-{secret[-5:]}-000"
        patient.mkdir(parents=True)
        for channel in (*SOURCES, TARGET):
            (patient / f"{patient.name}-{channel}.nii.gz").write_bytes(b"not a volume")
        settings = yaml.safe_load((folder / "site.yaml").read_text(encoding="utf-8"))
        settings["data"]["root"] = str(root)
        (folder / "site.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    def start_server(
        self, *, killing: Path | None = None, options: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start (or resume) the server; `killing`: the folder of `tests.federation.schedule`."""
        path = self.server / "server.yaml"
        wrapper = _killing(killing)
        return self._start("server", "lift-server", "--config", path, *options, wrapper=wrapper)

    def start_site(
        self,
        name: str,
        *,
        killing: Path | None = None,
        planting: bool = False,
        lying: bool = False,
        options: Sequence[str] = (),
        **environment: str,
    ) -> subprocess.Popen[bytes]:
        """Start a site; `planting`: with a session that sends too much; `lying`: see the module."""
        path = self.site(name) / "site.yaml"
        wrapper = ["tests.federation.planting"] if planting else _killing(killing)
        if lying:
            wrapper = ["tests.federation.lying"]
        return self._start(
            name, "lift-client", "--site", path, *options, wrapper=wrapper, environment=environment
        )

    def start_sites(self) -> None:
        """Start every site."""
        for name in self.sites:
            self.start_site(name)

    def wait_server(self, timeout_s: float = 180.0) -> int:
        """The server's exit code."""
        return self.processes["server"].wait(timeout_s)

    def records(self) -> list[dict[str, Any]]:
        """The lines of rounds.jsonl so far."""
        path = self.out / "rounds.jsonl"
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def log(self, name: str) -> str:
        """What a process wrote to its terminal."""
        return (self.folder / f"{name}.terminal").read_text(encoding="utf-8", errors="replace")

    def site_log(self, name: str) -> str:
        """What a site has logged so far; nothing before it has begun."""
        path = self.site(name) / "work" / "log.txt"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """One of our own processes stands still inside the block; its children do not."""
        process = self.processes[name]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def stop_sites(self) -> None:
        """Ask every site to stop, and note how each of them did."""
        up = {site: self.processes[site].poll() is None for site in self.sites}
        left = {site: children(self.processes[site].pid) for site in self.sites}
        for site in self.sites:
            self.processes[site].send_signal(signal.SIGTERM)
        for site in self.sites:
            code = self.processes[site].wait(30)
            self.farewells[site] = Farewell(up[site], code, left[site])

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End one of our own processes."""
        process = self.processes[name]
        if process.poll() is None:
            process.send_signal(number)
        process.wait(30)

    def close(self) -> None:
        """End everything that is still there, at once: their children end with them."""
        for name in self.processes:
            self.kill(name)

    def _start(
        self,
        name: str,
        *arguments: str | Path,
        wrapper: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        line = command(str(arguments[0]), *arguments[1:])
        if wrapper:
            line = [sys.executable, "-m", *wrapper, *map(str, arguments)]
        with (self.folder / f"{name}.terminal").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                # as on a machine whose users may read each other's files
                umask=0o022,
                stdout=output,
                stderr=output,
                cwd=PROJECT,
                env={**os.environ, **(environment or {})},
            )
        return self.processes[name]


def _killing(folder: Path | None) -> list[str]:
    return [] if folder is None else ["tests.federation.killing", str(folder)]


def add_north(tiny: TinyRun) -> None:
    """Volumes of a third site beside the two of the tiny run."""
    for index in range(NORTH_PATIENTS):
        rng = np.random.default_rng([7, index])
        for channel, voxels in make_patient(rng).items():
            write_nifti(tiny.file("north", index, channel), voxels)


def tiny_plan() -> dict[str, object]:
    """A plan of seconds."""
    return {
        "task": {"source": list(SOURCES), "target": TARGET},
        "seed": 3,
        "threads": 1,
        "mixer": {"kind": "zrefine", "width": 4},
        "training": {
            "steps": 2,
            "patients_per_step": 2,
            "window": [6, 16, 16],
            "warmup_steps": 1,
        },
        "federation": {"rounds": 5, "deadline_s": 120.0},
        "privacy": {"mode": "none"},
    }


def simulate(federation: Federation, folder: Path, *, participation: Path | None = None) -> Path:
    """The same plan on the same volumes in one process; its output folder."""
    settings = {
        "name": "same",
        "data_statement": "Random ellipsoids made by a test; no patient was scanned.",
        "image_checks": False,
        "generator": {"bundle": str(federation.tiny.bundle)},
        "sites": [
            {"name": name, "data": {"layout": "brats", "root": str(federation.tiny.site(name))}}
            for name in federation.sites
        ],
        "plan": federation.server_settings()["plan"],
        "compare": [],
        "synthesis_patients": 0,
        "device": "cpu",
        "participation": None if participation is None else str(participation),
    }
    path = folder / "simulation.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    run("lift-simulate", "--config", path, "--output", folder / "simulated")
    return folder / "simulated"


def run(program: str, *arguments: str | Path) -> str:
    """Run a command that must succeed; its standard output."""
    done = subprocess.run(
        command(program, *arguments), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, (program, arguments, done.stdout, done.stderr)
    return done.stdout


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Seconds until something is so."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(what)
        time.sleep(0.05)
    return time.monotonic() - began


def runs(pid: int) -> bool:
    """Whether a process is there, and more than an entry that nobody has waited for."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(entry.name))
    return found
