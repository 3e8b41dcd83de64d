"""A coordinator's folder: certificates, an empty roster, a commented server.yaml.

Nothing that is there is overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Final

from lift.config.kit import CA_FILE
from lift.config.server import ServerConfig
from lift.errors import ConfigError
from lift_server.sites.certificates import (
    CA_KEY_FILE,
    SERVER_FILE,
    SERVER_KEY_FILE,
    make_certificates,
    write_new,
)
from lift_server.sites.roster import ROSTER_FILE, Roster, check_name

CONFIG_FILE: Final = "server.yaml"
CERTIFICATES: Final = "certificates"

_SERVER_YAML: Final = Template("""\
# Settings of lift-server. Relative paths are those of this file's folder.
# Every key is checked: a typo stops the start. `lift-server check` tests all that stands here.
name: "$federation"
data_statement: ""   # what the sites' volumes are, in one sentence: it stands in the run's record
phantom: false       # true when every site's volumes are phantoms: said wherever the mixer goes
address: "$address"   # what sites dial; the host must stand in the server's certificate
listen_host: 0.0.0.0
listen_port: 8443              # the only public port: TLS, and nothing but what sites need
control_port: 8444             # on 127.0.0.1 only
health_port: 8445              # on 127.0.0.1 only: gRPC health service; null switches it off
page_host: 127.0.0.1           # the live page is for this machine: it asks for no password
page_port: 8446                # live page and /metrics, read-only; null switches both off
certificates: certificates     # ca.pem, ca.key, server.pem, server.key
sites: sites.json              # written by add-site and remove-site
state: state                   # what the server must remember between starts
output: run                    # run.json, rounds.jsonl, checkpoints, mixer.safetensors
generator:
  # Trained on PHANTOM volumes: for trials. For patients: `bundle: FOLDER` of `lift pretrain`.
  builtin: phantom-t1n-t1c-t2w-t2f
wait_for_sites_s: 3600         # how long a start waits for the quorum of sites to connect
tracking:                      # who gets the rounds' figures; no part of the plan
  tensorboard: true            # run/tensorboard, for `tensorboard --logdir run/tensorboard`
  # Online ones send the sites' names and curves to that service: agree on it with the sites.
  mlflow: null                 # {} writes run/mlflow/mlflow.db; {uri: "https://..."} sends it
  wandb: null                  # {} writes run/wandb; {mode: online} sends it (wandb.ai, or `uri`)
plan:
  task: {source: [t1n, t1c, t2w], target: t2f}
  seed: 1
  threads: 2                   # part of what makes runs bit-identical on a CPU
  split: {train: 0.7, validation: 0.15, key: "$federation"}
  mixer: {kind: zrefine}
  training: {steps: 40, patients_per_step: 4, window: [10, 48, 48]}
  aggregation: {weights: patients, largest_share: 0.6}
  federation:
    rounds: 20
    quorum_sites: 0            # sites that must answer in each round; 0 means all
    quorum_patients: 1.0       # share of all training patients that must have answered
    patient_count_step: 5      # sites round their numbers of patients up to a multiple of this
    deadline_s: 3600           # a round closes after this with those who answered; null derives
                               # it from the sites' timed dry runs
  # Required, and a choice: with `none` nobody adds noise to what the sites send, so the updates
  # and the mixer carry no privacy guarantee. Each site's policy must accept it as well. Another
  # choice, whose epsilon and noise `lift-server --dry-run --epsilon 8` tells:
  # privacy:
  #   mode: patient-local
  #   delta: 0.0001              # 1 / (10 x public number of patients), rounded down
  #   public_patients: 100       # agreed for every site, or by site: {north: 100, south: 60}
  #   clip_norm: 0.1             # from public data
  #   noise_multiplier: 3.0
  #   sampling_rate: 0.16
  #   start: {noise_multiplier: 10.0, clip_norm: 0.01}
  privacy: {mode: none}
""")


def init_folder(
    folder: Path, hosts: Sequence[str], federation: str, *, now: datetime | None = None
) -> None:
    """Make a coordinator's folder: certificates with their keys, an empty roster, server.yaml.

    The keys have mode 0600 from their first moment. Either all files are written or, unless
    the process is killed, none.

    Args:
        folder: is made if it is not there.
        hosts: names or IP addresses at which sites reach the server; the first one is dialled.
        federation: name of the federation.
        now: the time at which the certificates are made.

    Raises:
        ConfigError: a name is not one, or the folder holds one of the files already.
    """
    check_name(federation, "the federation")
    made = make_certificates(hosts, federation, now or datetime.now(UTC))
    present = [path.relative_to(folder).as_posix() for path in _files(folder) if path.exists()]
    if present:
        raise ConfigError(
            "the folder is in use",
            where=str(folder),
            seen=f"it holds {', '.join(present)}",
            remedy="Nothing was changed. Choose another folder; `lift-server renew` makes a new "
            "server certificate.",
        )
    host = hosts[0].strip("[]")
    text = {
        "federation": federation,
        "address": f"[{host}]:8443" if ":" in host else f"{host}:8443",
    }
    contents = (
        (made.ca, 0o644),
        (made.ca_key, 0o600),
        (made.server, 0o644),
        (made.server_key, 0o600),
        ((json.dumps(Roster().model_dump(mode="json"), indent=2) + "\n").encode(), 0o644),
        (_SERVER_YAML.substitute(text).encode(), 0o644),
    )
    (folder / CERTIFICATES).mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for path, (content, mode) in zip(_files(folder), contents, strict=True):
            write_new(path, content, mode)
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def load_settings(folder: Path) -> ServerConfig:
    """The settings of a coordinator's folder, with its paths.

    Raises:
        ConfigError: server.yaml is missing or wrong.
    """
    return ServerConfig.from_yaml(folder / CONFIG_FILE).under(folder)


def _files(folder: Path) -> tuple[Path, ...]:
    """The files of `init_folder`, server.yaml last: with it the folder is complete."""
    names = (CA_FILE, CA_KEY_FILE, SERVER_FILE, SERVER_KEY_FILE)
    certificates = (folder / CERTIFICATES / name for name in names)
    return (*certificates, folder / ROSTER_FILE, folder / CONFIG_FILE)
