"""A site's audit is its own: signed, and of one mixer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from lift.audit.documents import (
    AttackRow,
    SignedAudit,
    SiteAudit,
    check_signature,
    read_signed,
    write_signed,
)
from lift.audit.scores import CAVEAT
from lift.errors import ConfigError, PolicyError
from lift.keys import public_text, sign_text
from tests.lift.small_world import assert_four_parts

KEY = ec.generate_private_key(ec.SECP384R1())
OTHER = ec.generate_private_key(ec.SECP384R1())
FIGURES = AttackRow(
    auc=0.52, auc_low=0.4, auc_high=0.61, tpr=0.05, fpr_of_tpr=0.0, members=40, others=15
)
AUDIT = SiteAudit(
    kind="membership",
    site="north",
    mixer_digest="a" * 64,
    plan_digest="b" * 64,
    attacks={"loss_threshold": FIGURES},
    caveat=CAVEAT,
    made="2026-01-01T00:00:00+00:00",
)


def text(key: ec.EllipticCurvePrivateKey) -> str:
    return public_text(key.public_key()).decode()


def signed(folder: Path) -> SignedAudit:
    write_signed(folder / "audit.json", AUDIT, KEY)
    return read_signed(folder / "audit.json")


def test_what_was_signed_comes_back_and_fits_the_key(tmp_path: Path) -> None:
    found = signed(tmp_path)
    assert found.audit == AUDIT
    check_signature(found, text(KEY))


def test_another_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as refused:
        check_signature(signed(tmp_path), text(OTHER))
    assert_four_parts(refused.value)
    for wrong in ("", "ssh-ed25519 AAAA", "nothing"):
        with pytest.raises(PolicyError):
            check_signature(signed(tmp_path), wrong)


@given(auc=st.integers(0, 100).map(lambda n: n / 100))
def test_a_changed_figure_is_refused(auc: float) -> None:
    signature = sign_text(KEY, AUDIT.canonical_json().encode())
    attacks = {"loss_threshold": FIGURES.model_copy(update={"auc": auc})}
    changed = AUDIT.model_copy(update={"attacks": attacks})
    document = SignedAudit(audit=changed, signature=signature)
    if auc == FIGURES.auc:
        check_signature(document, text(KEY))
    else:
        with pytest.raises(PolicyError):
            check_signature(document, text(KEY))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"audit": 3}', "\x00"])
def test_a_file_that_is_no_audit_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "audit.json"
    path.write_text(content)
    with pytest.raises(ConfigError):
        read_signed(path)
    with pytest.raises(ConfigError):
        read_signed(tmp_path / "absent.json")


def test_nothing_of_a_single_patient_has_a_place(tmp_path: Path) -> None:
    data = json.loads((signed(tmp_path)).model_dump_json())
    data["audit"]["attacks"]["loss_threshold"]["scores"] = {"sub-01": 0.3}
    (tmp_path / "audit.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="scores"):
        read_signed(tmp_path / "audit.json")
