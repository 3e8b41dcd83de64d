"""Weights & Biases: offline in the run's folder, or online where that was asked for."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lift.config.tracking import WandbSettings
from lift.tracking.base import About
from lift.tracking.identity import Identity

_GIVE_UP_AFTER_S: Final = 15.0


class WandbTracker:
    """One federation as one W&B run; a resumed one keeps the run's id.

    Offline, a resumed run's folder is replaced: the rounds are told again. Online, the service
    has kept the rounds before, and what it has is not told again.

    Of what the package would gather by itself nothing is taken: no console, code, git,
    requirements, machine metadata or statistics, and no error reports.

    Raises:
        Exception: whatever the package raises.
    """

    def __init__(self, settings: WandbSettings, out: Path, about: About) -> None:
        folder = (out / "wandb").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        # the first before the import and the start of its process, which inherits them
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
            os.environ[f"WANDB_{name}_DIR"] = str(folder / "work")
        import wandb

        online = settings.mode == "online"
        identity = Identity(folder / "runs.json", about.part, settings.uri or "wandb")
        run_id = identity.known
        if run_id is None:
            run_id = secrets.token_hex(6)
            identity.keep(run_id)
        for old in folder.glob(f"offline-run-*-{run_id}"):
            shutil.rmtree(old, ignore_errors=True)
        own_server = {} if settings.uri is None else {"base_url": settings.uri}
        self._run = wandb.init(
            project=settings.project or about.federation,
            entity=settings.entity,
            id=run_id,
            name=about.title,
            group=about.federation if about.part else None,
            config=about.texts,
            resume="allow" if online else None,
            reinit="create_new",
            settings=wandb.Settings(
                mode=settings.mode,
                root_dir=str(out.absolute()),
                # also keeps it from asking for a key on a terminal
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                save_code=False,
                sync_tensorboard=False,
                symlink=False,
                host="lift",
                program="lift",
                label_disable=True,
                init_timeout=_GIVE_UP_AFTER_S,
                finish_timeout=_GIVE_UP_AFTER_S,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_viewer=True,
                x_save_requirements=False,
                **own_server,
            ),
        )
        self._next = int(self._run.step) if online else 0

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Add one step that the run has not got yet."""
        if step >= self._next:
            self._run.log(dict(figures), step=step)

    def close(self, *, complete: bool) -> None:
        """Write, or online send, what is left."""
        self._run.finish(exit_code=0 if complete else 1)
