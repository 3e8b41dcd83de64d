"""The folder of a trial: the files that the guides make, by the guides' own commands.

server/          as the coordinator's guide makes it
sites/NAME/      as the site operator's guide makes it, with the volumes in `data`
logs/NAME.txt    what each program wrote
simulation.yaml  repeats the run in one process
"""

from __future__ import annotations

import random
import re
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import click
import yaml

from lift.config.base import read_yaml
from lift.config.server import ServerConfig
from lift.errors import EXIT_CODES, ConfigError
from lift.files import write_atomically
from lift_server.sites.provisioning import CONFIG_FILE, load_settings
from lift_server.trial.children import Crew, run_command
from lift_server.trial.settings import BUDGET, TRIAL_FILE, Trial, quoted, with_values

SITE_FILE: Final = "site.yaml"
DRILL_FILE: Final = "drill.yaml"
DRILL_FOLDER: Final = "drill"
"""The drill's own run, beside the first one."""
_STATEMENT: Final = (
    "PHANTOM volumes made from the MNI152 atlas with simulated scanners; no patient was scanned."
)
# below the ports that Linux gives to outgoing connections
_PORTS: Final = range(20_000, 32_000)
_TRIES: Final = 1000
# what deploy/systemd/lift-client.service does not restart
_FINAL: Final = {0} | {
    EXIT_CODES[label].number
    for label in ("config", "data", "privacy", "version", "policy", "record")
}
_MOST_FALLS: Final = 3
_TAIL: Final = 5


class TrialFolder:
    """Paths of a trial's folder, and how its files are made.

    Args:
        root: the folder.
        trial: what it holds.
    """

    def __init__(self, root: Path, trial: Trial) -> None:
        self.root = root
        self.trial = trial
        self.server = root / "server"
        self.simulation = root / "simulation.yaml"
        self.crew = Crew(root / "logs")
        self._falls: Counter[str] = Counter()

    def site(self, name: str) -> Path:
        """The folder of a site."""
        return self.root / "sites" / name

    def site_file(self, name: str) -> Path:
        """The settings of a site."""
        return self.site(name) / SITE_FILE

    def report(self, name: str) -> Path:
        """The own report of a site."""
        return self.site(name) / "work" / "report" / "report.html"

    def settings(self) -> ServerConfig:
        """The settings of the server."""
        return load_settings(self.server)

    def drill_settings(self) -> ServerConfig:
        """The settings of the server during the drill: another output, all else the same."""
        text = (self.server / CONFIG_FILE).read_text(encoding="utf-8")
        path = self.server / DRILL_FILE
        write_atomically(path, with_values(text, {"output": DRILL_FOLDER}).encode())
        return ServerConfig.from_yaml(path).under(self.server)

    def start_site(self, name: str) -> None:
        """Start the client of a site."""
        self.crew.start(name, "lift-client", "--site", self.site_file(name))

    def keep_sites(self, names: Iterable[str], say: Callable[[str], None]) -> list[str]:
        """Start sites again that have ended, as their service does, and return their names.

        Raises:
            Exit: a site ended with an error that a restart cannot help, or too often.
        """
        fallen = []
        for name in names:
            code = self.crew.ended(name)
            if code is None:
                continue
            log = self.crew.log(name)
            self._falls[name] += 1
            if code in _FINAL or self._falls[name] > _MOST_FALLS:
                words = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
                say("\n".join([f"site {name} has ended with exit {code}: {log}", *words]))
                raise click.exceptions.Exit(code or 1)
            say(f"site {name} ended with exit {code} and is started again, as its service does")
            self.start_site(name)
            fallen.append(name)
        return fallen

    def make(self, say: Callable[[str], None]) -> None:
        """Make what is not there yet; a folder that is whole is left as it is."""
        if self.trial.made:
            return
        say("making the server's folder: lift-server init")
        if not (self.server / CONFIG_FILE).exists():
            run_command(
                "lift-server", "init", self.server, "--host", "localhost", "--name", "trial"
            )
        ports = _free_ports(4 + self.trial.sites)
        self._write_server(ports[:4])
        for name, port in zip(self.trial.names, ports[4:], strict=True):
            say(
                f"making site {name}: lift-client enroll, lift-client phantom, lift-server add-site"
            )
            self._make_site(name, port)
        if self.trial.privacy == "none":
            self._write_simulation()
        self.trial = self.trial.model_copy(update={"made": True})
        self.trial.write(self.root)

    def admit(self, name: str) -> None:
        """Give a site's public key to the server, and its kit to the site."""
        run_command("lift-server", "add-site", self.server, name, self.site(name) / "site.pub")
        kit = self.site(name) / "kit"
        shutil.copytree(self.server / "kits" / name, kit, dirs_exist_ok=True)

    def enrol_again(self, name: str) -> None:
        """Give a removed site a new key, as the site operator's guide says, and admit it."""
        new = self.site(name) / "new"
        shutil.rmtree(new, ignore_errors=True)
        run_command("lift-client", "enroll", name, "--folder", new)
        for file in ("site.key", "site.pub"):
            (new / file).replace(self.site(name) / file)
        shutil.rmtree(new)
        self.admit(name)

    def _write_server(self, ports: list[int]) -> None:
        path = self.server / CONFIG_FILE
        listen, control, health, page = ports
        values = {
            "data_statement": quoted(_STATEMENT),
            "phantom": "true",
            "address": quoted(f"localhost:{listen}"),
            "listen_host": "127.0.0.1",
            "listen_port": listen,
            "control_port": control,
            "health_port": health,
            "page_port": page,
            "wait_for_sites_s": 600,
            **self.trial.plan(),
        }
        text = with_values(path.read_text(encoding="utf-8"), values)
        write_atomically(path, text.encode())

    def _make_site(self, name: str, port: int) -> None:
        folder, path = self.site(name), self.site_file(name)
        if not path.exists():
            run_command("lift-client", "enroll", name, "--folder", folder)
        text = path.read_text(encoding="utf-8")
        if self.trial.privacy != "none":
            text = re.sub(r"^# budget: .*$", f"budget: {BUDGET}", text, flags=re.MULTILINE)
        values = {
            "layout": "brats",
            "device": "cpu",
            "local_port": port,
            "privacy_modes": f"[{self.trial.privacy}]",
        }
        write_atomically(path, with_values(text, values).encode())
        self._write_phantoms(name)
        self.admit(name)
        if self.trial.privacy != "none" and not (folder / "work" / "ledger.jsonl").exists():
            run_command("lift-client", "ledger", "--create", "--site", path)

    def _write_phantoms(self, name: str) -> None:
        data = self.site(name) / "data"
        if data.exists():
            return
        # renamed when it is whole: what was broken off is made anew
        part = data.with_name("data.part")
        shutil.rmtree(part, ignore_errors=True)
        options = (
            word
            for key, value in self.trial.phantoms(name).items()
            for word in (f"--{key}", str(value))
        )
        run_command("lift-client", "phantom", part, "--layout", "brats", *options)
        part.replace(data)

    def _write_simulation(self) -> None:
        """The same plan on the same phantoms in one process; it has no path of this machine."""
        server: Any = read_yaml(self.server / CONFIG_FILE)
        settings = {
            "name": "trial",
            "data_statement": _STATEMENT,
            "generator": server["generator"],
            "sites": [
                {"name": name, "data": {"layout": "phantom", **self.trial.phantoms(name)}}
                for name in self.trial.names
            ],
            "plan": server["plan"],
            "compare": [],
            "synthesis_patients": 0,
            "device": "cpu",
        }
        text = "# Repeats the run of this folder in one process: lift-simulate --config FILE\n"
        text += yaml.safe_dump(settings, sort_keys=False, width=96)
        write_atomically(self.simulation, text.encode())


def open_folder(root: Path, wanted: Trial) -> TrialFolder:
    """The trial of a folder, new or begun earlier.

    Args:
        root: is created if it does not exist.
        wanted: what is asked for now.

    Raises:
        ConfigError: the folder holds something else, or a trial with other options.
    """
    found = Trial.read(root)
    if found is None:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise ConfigError(
                "cannot make a trial in this folder",
                where=str(root),
                seen="it is not empty, and holds no trial",
                remedy="Nothing was changed. Name a folder that does not exist yet.",
            )
        root.mkdir(parents=True, exist_ok=True)
        wanted.write(root)
        return TrialFolder(root, wanted)
    before, now = (trial.model_dump(exclude={"made"}) for trial in (found, wanted))
    if before != now:
        other = ", ".join(f"{key}: {before[key]}" for key in before if before[key] != now[key])
        raise ConfigError(
            "the folder holds a trial with other options",
            where=str(root / TRIAL_FILE),
            seen=f"there: {other}",
            remedy="Nothing was changed. Give these options to go on with it, or name another "
            "folder.",
        )
    return TrialFolder(root, found)


def _free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody holds at this moment."""
    drawn, found = random.SystemRandom(), set[int]()
    for _ in range(_TRIES):
        port = drawn.choice(_PORTS)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.add(port)
        if len(found) == number:
            return list(found)
    raise ConfigError(
        "no free ports for the trial",
        where="127.0.0.1",
        seen=f"{len(found)} free ports between {_PORTS[0]} and {_PORTS[-1]}; needed: {number}",
        remedy="Nothing was started. End other programs that listen on this machine.",
    )
