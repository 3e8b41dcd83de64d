"""The data card leaves when it was shared, and no header's text ever does."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from flwr.app import RecordDict
from pydicom.dataset import Dataset
from rich.console import Console

from lift.config.card import DataCard
from lift.config.cohort import TableData
from lift.inspection.card_view import show_card
from lift.logs import log_to_file, log_to_terminal
from lift.protocol.codec import decode_reply
from lift.protocol.flower.records import unpack
from lift.protocol.messages import StatisticsReply
from lift_client.check import image_view
from lift_client.check.data_card import make_card, share
from lift_client.check.image_check import examine_cohort
from lift_client.gate.journal import JOURNAL_FILE, verify
from tests.end_to_end.tiny_run import TinyRun
from tests.federation.desk import POLICY, Real, asking, training
from tests.lift.formats.cases import itk_image
from tests.lift.formats.dicom_cases import series, write

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


def first_answer(real: Real) -> StatisticsReply:
    reply = real.desk(POLICY).say(asking(real.plan))
    body = decode_reply(unpack(reply)).body
    assert isinstance(body, StatisticsReply)
    return body


def the_card(real: Real) -> DataCard:
    channels = real.plan.task.channels
    report = examine_cohort(real.config, channels, workers=1)
    return make_card(report.patients, channels, site="east", floor=2, day="2026-11-23")


def test_a_card_leaves_only_when_it_was_shared(real: Real) -> None:
    assert first_answer(real).data_card is None
    config = real.config.model_copy(update={"folder": real.folder})
    card = the_card(real)
    assert card.persons >= 2
    share(card, config, real.kit.address)
    assert first_answer(real).data_card == card
    lines = verify(real.folder / JOURNAL_FILE).lines
    assert [(line.kind, line.card == card) for line in lines] == [
        ("statistics", False),
        ("card", True),
        ("statistics", True),
    ]
    (real.folder / "data-card.json").unlink()
    assert first_answer(real).data_card is None


SECRETS = ("DOE^JANE", "19480317", "MRN-0042-77", "Saint Elsewhere")
TEXT = " ".join(SECRETS)


def nifti(voxels: Any, affine: Any, path: Path, kind: Any = nibabel.Nifti1Image) -> None:
    image = kind(voxels, affine)
    image.header["descrip"] = TEXT.encode()[:79]
    image.header["aux_file"] = SECRETS[2].encode()
    image.header["db_name"] = SECRETS[0].encode()
    image.header["intent_name"] = SECRETS[1].encode()
    if kind is nibabel.Nifti1Image:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", TEXT.encode()))
    image.to_filename(path)


def pair(voxels: Any, affine: Any, path: Path) -> None:
    nifti(voxels, affine, path, nibabel.Nifti1Pair)


def mgz(voxels: Any, affine: Any, path: Path) -> None:
    image = nibabel.MGHImage(voxels.astype(np.float32), affine)
    footer = bytes(20) + b"\0\0\0\x03" + len(TEXT).to_bytes(8, "big") + TEXT.encode()
    path.write_bytes(gzip.compress(image.to_bytes() + footer))


def nrrd(voxels: Any, affine: Any, path: Path) -> None:
    SimpleITK.WriteImage(itk_image(voxels, affine), str(path))
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(first + f"\n# {TEXT}\npatient:={TEXT}\n".encode() + rest)


def metaimage(voxels: Any, affine: Any, path: Path) -> None:
    SimpleITK.WriteImage(itk_image(voxels, affine), str(path))
    first, rest = path.read_bytes().split(b"\n", 1)
    fields = f"\nComment = {TEXT}\nName = {TEXT}\nAcquisitionDate = {SECRETS[1]}\n"
    path.write_bytes(first + fields.encode() + rest)


def dicom(voxels: Any, affine: Any, path: Path) -> None:
    def named(_: int, dataset: Dataset) -> None:
        for element in dataset:
            if element.VR in {"PN", "LO", "SH", "LT", "ST"} and not element.tag.is_private_creator:
                element.value = TEXT[:16]
        dataset.PatientName, dataset.PatientBirthDate = SECRETS[0], SECRETS[1]
        dataset.PatientID, dataset.InstitutionName = SECRETS[2], SECRETS[3]

    scaled = np.rint(voxels / voxels.max() * 4000).astype("<i2")
    write(series(scaled, affine, change=named), path)


WRITERS: dict[str, Any] = {
    "a.nii.gz": nifti,
    "a.nii": nifti,
    "a.hdr": pair,
    "a.mgz": mgz,
    "a.nrrd": nrrd,
    "a.mha": metaimage,
    "a": dicom,
}


@pytest.fixture
def named(real: Real, volumes: TinyRun) -> Real:
    """Every format twice, whole and cut off, with names in every text that it can hold."""
    root = real.folder / "data"
    channels = real.plan.task.channels
    rows = [["patient", *channels]]
    for number, (name, write_as) in enumerate([*WRITERS.items()] * 2):
        row = [f"case{number}"]
        for channel in channels:
            image = nibabel.load(volumes.file("east", number % 6, channel))
            folder = root / row[0] / channel
            folder.mkdir(parents=True)
            voxels = np.asanyarray(image.dataobj)
            write_as(voxels, image.affine, folder / name)
            sidecar = {"Manufacturer": TEXT, "PatientName": TEXT, "SliceThickness": TEXT}
            (folder / "a.json").write_text(json.dumps(sidecar))
            row.append(f"{row[0]}/{channel}/{name}")
        if number >= len(WRITERS):
            broken = folder / name.replace(".hdr", ".img")
            broken = max(broken.iterdir()) if broken.is_dir() else broken
            broken.write_bytes(broken.read_bytes()[:-40])
        rows.append(row)
    table = root / "table.csv"
    table.write_text("".join(",".join(row) + "\n" for row in rows))
    config = real.config.model_copy(update={"data": TableData(root=root, table=table)})
    return dataclasses.replace(real, config=config)


def test_no_text_of_a_header_leaves_or_is_kept(
    named: Real, capfd: pytest.CaptureFixture[str]
) -> None:
    work = named.folder / "work"
    named = dataclasses.replace(named, folder=work)
    config = named.config.model_copy(update={"folder": work})
    channels = named.plan.task.channels
    wire: list[RecordDict] = []
    with log_to_file(work / "log.txt"), log_to_terminal():
        report = examine_cohort(config, channels, workers=1)
        image_view.show(report)
        # ellipsoids pair badly; the card is to hold all that it can hold
        all_good = [patient.model_copy(update={"remarks": ()}) for patient in report.patients]
        card = make_card(all_good, channels, site="east", floor=2, day="2026-11-23")
        share(card, config, named.kit.address)
        show_card(card, Console(width=160))
        desk = named.desk(POLICY)
        wire.append(desk.say(asking(named.plan)))
        wire.append(desk.say(training(named.plan, 1, named.mixer()), "train"))
        # one that stops at the first bad file
        strict = config.data.model_copy(update={"on_bad_file": "stop"})
        strict_site = dataclasses.replace(
            named, config=config.model_copy(update={"data": strict}), folder=work / "strict"
        )
        wire.append(strict_site.desk(POLICY).say(asking(named.plan)))
    assert [next(iter(reply)) for reply in wire] == ["lift.parcel", "lift.parcel", "lift.failure"]
    # all were looked at, the whole ones were used, and the names of the fields were told
    unread = {
        patient.patient
        for patient in report.patients
        for remark in patient.remarks
        if remark.check == "readable"
    }
    assert unread == {f"case{number}" for number in range(len(WRITERS), 2 * len(WRITERS))}
    assert card.usable == 2 * len(WRITERS)
    assert all(channel.slices for channel in card.channels)
    told = "".join(remark.seen for patient in report.patients for remark in patient.remarks)
    for field in ("descrip", "comments", "Comment", "PatientName", "private tags"):
        assert field in told
    shown = "".join(capfd.readouterr())
    assert "case7" in shown
    kept = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    assert {"log.txt", "journal.jsonl", "data-card.json"} <= {path.name for path in kept}
    assert b"case7" in kept[work / "log.txt"]
    sent = [str(reply).encode() for reply in wire] + [
        bytes(value) for reply in wire for value in _bytes_in(reply)
    ]
    for secret in SECRETS:
        assert secret not in shown
        for content in [*kept.values(), *sent]:
            assert secret.encode() not in content
            assert secret.encode("utf-16-le") not in content
    # names of patients and files stay in the site's own log and reports
    assert not any(b"case" in content for content in sent)


def _bytes_in(reply: RecordDict) -> list[bytes]:
    encoded = unpack(reply) if "lift.parcel" in reply else None
    return [] if encoded is None else [encoded.text.encode(), encoded.block]
