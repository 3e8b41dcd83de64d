"""From a plan to a mixer."""

from __future__ import annotations

import torch

from lift.config.plan import MixerPlan
from lift.errors import ConfigError
from lift.mixer.base import FrozenParts, Mixer
from lift.mixer.pooled_bigru import PooledBiGRU
from lift.mixer.pyramid import Pyramid
from lift.mixer.zconv import ZConv
from lift.mixer.zdiff import ZDiff
from lift.mixer.zrefine import Control2D, ZRefine, ZRefineLite


def build_mixer(plan: MixerPlan, frozen: FrozenParts, *, seed: int) -> Mixer:
    """An untrained mixer on the CPU, whose z-filter (if any) still has all taps at 0.

    The same arguments give the same bits; the global random state is neither used nor changed.

    Raises:
        ConfigError: the generator lacks something that this mixer needs.
    """
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: that would seed every GPU too, which is not restored
        torch.default_generator.manual_seed(seed)
        return _construct(plan, frozen)


def _construct(plan: MixerPlan, frozen: FrozenParts) -> Mixer:
    match plan.kind:
        case "zrefine":
            return ZRefine(plan.width, frozen)
        case "zrefine_lite":
            return ZRefineLite(plan.width, frozen)
        case "pyramid":
            return Pyramid(plan.width, frozen)
        case "zdiff":
            return ZDiff(plan.radius, frozen)
        case "zconv":
            return ZConv(frozen)
        case "pooled_bigru":
            return PooledBiGRU(plan.width, frozen)
        case "control_2d":
            return Control2D(plan.width, frozen)
        case "trajectory_mapper":
            raise ConfigError(
                "this mixer makes new volumes and has no use in a translation",
                where="mixer.kind",
                seen=plan.kind,
                remedy="Choose another mixer, or an unconditional task.",
            )
