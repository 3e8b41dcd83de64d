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
# Settings of lift-server. Relative paths are relative to this file's folder.
# Every key is checked, and a typo stops the start. `lift-server check` tests all settings.
name: "$federation"
data_statement: ""   # one sentence that describes the sites' volumes, for the run's record
phantom: false       # true if all volumes are phantoms; the mixer is then marked as such
address: "$address"   # where sites connect; the host must be in the server's certificate
listen_host: 0.0.0.0
listen_port: 8443              # the only public port (TLS); serves only what sites need
control_port: 8444             # on 127.0.0.1 only
health_port: 8445              # on 127.0.0.1 only: gRPC health service; null disables it
page_host: 127.0.0.1           # the live page has no password: keep it on this machine
page_port: 8446                # live page and /metrics, read-only; null disables both
certificates: certificates     # ca.pem, ca.key, server.pem, server.key
sites: sites.json              # written by add-site and remove-site
state: state                   # what the server keeps between starts
output: run                    # run.json, rounds.jsonl, checkpoints, mixer.safetensors
generator:
  # Trained on PHANTOM volumes, for trials. For patients: `bundle: FOLDER` from `lift pretrain`.
  builtin: phantom-t1n-t1c-t2w-t2f
wait_for_sites_s: 3600         # longest wait for a quorum of sites to connect
tracking:                      # where the figures of the rounds go; not part of the plan
  tensorboard: true            # run/tensorboard, for `tensorboard --logdir run/tensorboard`
  # Online trackers send the names and curves of the sites to that service: ask the sites first.
  mlflow: null                 # {} writes run/mlflow/mlflow.db; {uri: "https://..."} sends it
  wandb: null                  # {} writes run/wandb; {mode: online} sends it (wandb.ai, or `uri`)
plan:
  task: {source: [t1n, t1c, t2w], target: t2f}
  seed: 1
  threads: 2                   # needed for bit-identical runs on a CPU
  split: {train: 0.7, validation: 0.15, key: "$federation"}
  mixer: {kind: zrefine}
  training: {steps: 40, patients_per_step: 4, window: [10, 48, 48]}
  # An update is scaled down to `largest_norm_ratio` times the median norm. Where the sites'
  # validation falls by more than `fall_tolerance_db` below its best, the run goes back and leaves a
  # site out (`on_fall: go-back`; or: stop, go-on).
  aggregation: {weights: patients, largest_share: 0.6, largest_norm_ratio: 2.0, on_fall: go-back}
  federation:
    rounds: 20
    quorum_sites: 0            # sites that must answer in each round; 0: all
    quorum_patients: 1.0       # share of all patients that must be covered
    patient_count_step: 5      # sites round their numbers of patients up to a multiple of this
    deadline_s: 3600           # a round closes after this, with the answers so far; null derives
                               # it from the sites' timed dry runs
  # Required; there is no default. With `none`, no noise is added to what the sites send, so the
  # updates and the mixer have no privacy guarantee. The policy of each site must accept the mode.
  # Example of another mode; `lift-server --dry-run --epsilon 8` prints its epsilon and noise:
  # privacy:
  #   mode: patient-local
  #   delta: 0.0001              # 1 / (10 x public number of patients), rounded down
  #   public_patients: 100       # agreed, for every site or by site: {north: 100, south: 60}
  #   clip_norm: 0.1             # from public data
  #   noise_multiplier: 3.0
  #   sampling_rate: 0.16
  #   start: {noise_multiplier: 10.0, clip_norm: 0.01}
  privacy: {mode: none}
""")


def init_folder(
    folder: Path, hosts: Sequence[str], federation: str, *, now: datetime | None = None
) -> None:
    """Create a coordinator's folder: certificates with keys, an empty roster, server.yaml.

    The keys have mode 0600 from their first moment. Either all files are written or, unless
    the process is killed, none.

    Args:
        folder: is created if it does not exist.
        hosts: names or IP addresses of the server; sites connect to the first one.
        federation: name of the federation.
        now: the time at which the certificates are created.

    Raises:
        ConfigError: a name is not valid, or the folder already holds one of the files.
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
    """Read the settings of a coordinator's folder, with its paths.

    Raises:
        ConfigError: server.yaml is missing or wrong.
    """
    return ServerConfig.from_yaml(folder / CONFIG_FILE).under(folder)


def _files(folder: Path) -> tuple[Path, ...]:
    """The files of `init_folder`, server.yaml last: with it the folder is complete."""
    names = (CA_FILE, CA_KEY_FILE, SERVER_FILE, SERVER_KEY_FILE)
    certificates = (folder / CERTIFICATES / name for name in names)
    return (*certificates, folder / ROSTER_FILE, folder / CONFIG_FILE)
