"""The pod of `deploy/kubernetes`: no right too many; paths and options are the program's."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lift.config.server import ServerConfig
from lift.config.site import SiteConfig
from lift.errors import ConfigError
from lift.files import close_folder
from lift.keys import read_key
from lift.protocol.flower.connection import ConnectionFile
from lift_client.enrolment import enrol
from lift_client.gate.journal import JOURNAL_FILE, Entry, Journal, verify

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def deployment() -> dict[str, Any]:
    (found,) = documents("deployment.yaml")
    return found


@pytest.fixture(scope="module")
def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["initContainers"], *pod["containers"]]


def kubelet_takes(folder: Path) -> None:
    """What the kubelet does to a volume for `fsGroup`, but for the group itself."""
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        path.chmod(mode | (0o2770 if path.is_dir() else 0o660))


def secret_volume(folder: Path, content: bytes, mode: int) -> Path:
    """A secret's folder as the kubelet makes it: a link to a link to the file."""
    (folder / "..2026").mkdir(parents=True)
    file = folder / "..2026" / "site.key"
    file.write_bytes(content)
    file.chmod(mode)
    (folder / "..data").symlink_to("..2026")
    (folder / "site.key").symlink_to(Path("..data") / "site.key")
    return folder / "site.key"


def test_kustomize_finds_what_it_names() -> None:
    (kustomization,) = documents("kustomization.yaml")
    there = {path.name for path in FOLDER.iterdir()} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) | {"gpu.yaml"} == there
    # what `lift-client enroll` and the coordinator's kit bring, and no key of its own
    generated = kustomization["configMapGenerator"] + kustomization["secretGenerator"]
    files = {file for entry in generated for file in entry["files"]}
    assert files == {"site/site.yaml", "site/kit/kit.json", "site/kit/ca.pem", "site/site.key"}
    assert {entry["name"] for entry in kustomization["secretGenerator"]} == {"lift-site-key"}
    everything = "".join(path.read_text(encoding="utf-8") for path in FOLDER.iterdir())
    assert "PRIVATE KEY" not in everything
    assert "kind: Secret\n" not in everything


def test_one_pod_at_a_time_and_never_two(deployment: dict[str, Any]) -> None:
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    claims = {claim["metadata"]["name"]: claim["spec"] for claim in documents("volumes.yaml")}
    assert claims["lift-work"]["accessModes"] == ["ReadWriteOncePod"]
    assert claims["lift-data"]["accessModes"] == ["ReadOnlyMany"]


def test_the_pod_has_no_right_that_a_site_does_not_need(pod: dict[str, Any]) -> None:
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    recipe = (ROOT / "deploy/containers/Containerfile.cpu").read_text(encoding="utf-8")
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in recipe
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & set(pod)
    for container in containers(pod):
        assert container["securityContext"] == RESTRICTED
        assert "limits" in container["resources"]
        assert not {"ports", "lifecycle"} & set(container)
    assert not any("hostPath" in volume for volume in pod["volumes"])
    (namespace,) = documents("namespace.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_what_the_site_only_reads_is_mounted_so(pod: dict[str, Any]) -> None:
    (site,) = pod["containers"]
    writable = {m["mountPath"] for m in site["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/srv/lift/volume", "/var/log/lift"}
    assert {mount["name"] for c in containers(pod) for mount in c["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    # the site itself never sees the secret's own file
    assert "secret" not in {mount["name"] for mount in site["volumeMounts"]}


def test_the_network_lets_it_dial_the_server_alone(deployment: dict[str, Any]) -> None:
    (policy,) = documents("network-policy.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["spec"]["ingress"] == []
    server, names = policy["spec"]["egress"]
    (to,) = server["to"]
    assert to["ipBlock"]["cidr"].endswith("/32")
    port = ServerConfig.model_fields["listen_port"].default
    assert server["ports"] == [{"protocol": "TCP", "port": port}]
    assert {(p["protocol"], p["port"]) for p in names["ports"]} == {("UDP", 53), ("TCP", 53)}


def test_the_paths_of_the_pod_are_those_that_its_settings_name(
    pod: dict[str, Any], tmp_path: Path
) -> None:
    (site,) = pod["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in site["volumeMounts"]}
    # the comment of kustomization.yaml is what an operator writes into site.yaml
    comment = (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")
    told = dict(re.findall(r"(?m)^#   (kit|key|folder): (\S+)$", comment))
    root = re.findall(r"(?m)^#   data: \{root: ([^,]+),", comment)
    assert (told["kit"], root) == (mounted["kit"], [mounted["data"]])
    assert told["key"] == f"{mounted['key']}/site.key"
    assert told["folder"] == f"{mounted['work']}/work"
    made = enrol(tmp_path, "berlin")
    settings = yaml.safe_load(made.settings.read_text(encoding="utf-8"))
    settings |= told
    settings["data"]["root"] = root[0]
    settings["policy"]["privacy_modes"] = ["none"]
    made.settings.write_text(yaml.safe_dump(settings), encoding="utf-8")
    config = SiteConfig.from_yaml(made.settings).under(Path("/srv/lift/site"))
    assert str(config.key) == told["key"]
    assert str(config.folder) == told["folder"]
    assert site["args"] == ["--site", f"{mounted['site']}/site.yaml"]
    assert site["env"] == [
        {"name": "HOME", "value": mounted["work"]},
        {"name": "TMPDIR", "value": mounted["logs"]},
    ]


def test_a_secrets_file_becomes_a_key_that_the_site_takes(
    pod: dict[str, Any], tmp_path: Path
) -> None:
    key = enrol(tmp_path / "hospital", "berlin").key.read_bytes()
    secret = next(volume["secret"] for volume in pod["volumes"] if volume["name"] == "secret")
    # fsGroup lets the group read what `defaultMode` closed
    file = secret_volume(tmp_path / "secret", key, secret["defaultMode"] | 0o440)
    with pytest.raises(ConfigError, match="open to others"):
        read_key(file)
    # a link alone is no obstacle
    read_key(secret_volume(tmp_path / "alone", key, 0o400))

    (init,) = pod["initContainers"]
    memory = tmp_path / "memory"
    memory.mkdir(mode=0o2777)
    mounts = {mount["mountPath"]: mount["name"] for mount in init["volumeMounts"]}
    folders = {"secret": file.parent, "key": memory}
    program, *words = init["command"]
    for path, name in mounts.items():
        words = [word.replace(path, str(folders[name])) for word in words]
    found = shutil.which(program)
    assert found is not None
    subprocess.run([found, *words], check=True)
    read_key(memory / "site.key")
    assert stat.S_IMODE((memory / "site.key").stat().st_mode) == 0o600


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A work folder in a volume, as a site leaves it."""
    before = os.umask(0o077)
    folder = tmp_path / "volume" / "work"
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(
        Entry(run="", round=0, kind="note", tensors=(), bytes=0, sha256="0" * 64,
              receiver="nobody", purpose="A line of a test.")
    )  # fmt: skip
    yield folder
    os.umask(before)


def test_the_work_folder_survives_what_the_cluster_does_to_modes(work: Path) -> None:
    volume = work.parent
    kubelet_takes(volume)
    assert verify(work / JOURNAL_FILE).problem is None
    # OnRootMismatch: once done, the volume's root stays as the cluster wants it
    close_folder(work)
    assert stat.S_IMODE(volume.stat().st_mode) & 0o2770 == 0o2770
    assert stat.S_IMODE(work.stat().st_mode) & 0o077 == 0


def test_ready_is_what_the_site_writes_of_its_connection(
    pod: dict[str, Any], tmp_path: Path
) -> None:
    (site,) = pod["containers"]
    program, *words = site["readinessProbe"]["exec"]["command"]
    path = tmp_path / "connection.json"
    *words, file = words
    assert file == "/srv/lift/volume/work/connection.json"
    grep = shutil.which(program)
    assert grep is not None

    def ready() -> bool:
        return subprocess.run([grep, *words, str(path)], check=False).returncode == 0

    known = ConnectionFile(path)
    assert not ready()
    known.note("connected")
    assert ready()
    known.note("away")
    assert not ready()


def test_the_patch_for_a_gpu_changes_the_site_and_nothing_else(
    deployment: dict[str, Any],
) -> None:
    (patch,) = documents("gpu.yaml")
    assert patch["metadata"]["name"] == deployment["metadata"]["name"]
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    (site,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container == {
        "name": site["name"],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
    assert "#   - path: gpu.yaml\n" in (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")
