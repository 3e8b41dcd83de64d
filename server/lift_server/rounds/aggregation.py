"""From updates to the next mixer: weights, mean, server optimiser, moving average.

Sums run in float64 over sites sorted by name, so the result does not depend on the order in
which sites answered, and a re-run gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lift.config.plan import AggregationPlan
from lift.mixer.update import Values, add, check_same_form

Updates = Mapping[str, Values]


def site_weights(patients: Mapping[str, int], plan: AggregationPlan) -> dict[str, float]:
    """Weight of each site; they sum to 1.

    By training patients (FedAvg, McMahan et al. 2017, arXiv:1602.05629) or uniform. No weight
    passes `plan.largest_share`: what a site loses goes to the others in proportion. With too
    few sites for the share (1 / n is larger) all weigh the same.
    """
    names = sorted(patients)
    if plan.weights == "uniform" or len(names) * plan.largest_share <= 1.0:
        return dict.fromkeys(names, 1.0 / len(names))
    raw = {name: float(patients[name]) for name in names}
    capped: set[str] = set()
    while True:
        free = sum(raw[name] for name in names if name not in capped)
        left = 1.0 - plan.largest_share * len(capped)
        weights = {
            name: plan.largest_share if name in capped else left * raw[name] / free
            for name in names
        }
        above = {name for name in names if weights[name] > plan.largest_share * (1 + 1e-12)}
        if not above:
            return weights
        capped |= above


def mean_update(updates: Updates, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The weighted mean of the sites' updates, in float64.

    Raises:
        ValueError: the updates do not have one form.
    """
    sites = sorted(updates)
    first = updates[sites[0]]
    for site in sites[1:]:
        check_same_form(first, updates[site])
    return {
        name: torch.stack([updates[site][name].double() * weights[site] for site in sites]).sum(0)
        for name in sorted(first)
    }


def combined(
    updates: Updates, patients: Mapping[str, int], plan: AggregationPlan
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the combined update and the weight of each site. Add new rules here.

    Args:
        updates: by site, of one form.
        patients: training patients of these sites.
        plan: names the rule.
    """
    weights = site_weights({site: patients[site] for site in updates}, plan)
    return mean_update(updates, weights), weights


@dataclass(frozen=True)
class ServerState:
    """State of the server between rounds. The checkpoint holds all of it.

    Attributes:
        mixer: the mixer that the next round starts from.
        average: moving average of the mixers after round 1; empty when it is off.
        first_moment: server optimiser's momentum by tensor; empty when unused.
        second_moment: server Adam's second moment by tensor; empty when unused.
    """

    mixer: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)
    first_moment: dict[str, Tensor] = field(default_factory=dict)
    second_moment: dict[str, Tensor] = field(default_factory=dict)

    @property
    def released(self) -> dict[str, Tensor]:
        """Return the mixer that is evaluated and released: the moving average if there is one."""
        return self.average or self.mixer


def next_state(state: ServerState, update: Values, plan: AggregationPlan) -> ServerState:
    """The server's state after one round with the mean update `update`.

    `none`: mixer + learning_rate * update. `momentum` (FedAvgM) and `adam` (FedAdam) as
    algorithm 2 of Reddi et al. 2021, arXiv:2003.00295, without bias correction.
    """
    first, second = dict(state.first_moment), dict(state.second_moment)
    step: dict[str, Tensor] = {}
    for name in sorted(update):
        gradient = update[name].double()
        if plan.optimiser == "none":
            step[name] = gradient
            continue
        before = first.get(name, torch.zeros_like(gradient))
        if plan.optimiser == "momentum":
            first[name] = plan.momentum * before + gradient
            step[name] = first[name]
            continue
        first[name] = plan.momentum * before + (1 - plan.momentum) * gradient
        energy = second.get(name, torch.full_like(gradient, plan.epsilon**2))
        second[name] = (
            plan.second_momentum * energy + (1 - plan.second_momentum) * gradient.square()
        )
        step[name] = first[name] / (second[name].sqrt() + plan.epsilon)
    mixer = add(state.mixer, step, scale=plan.learning_rate)
    average: dict[str, Tensor] = {}
    if plan.ema > 0:
        old = state.average or mixer
        average = {
            name: (plan.ema * old[name].double() + (1 - plan.ema) * mixer[name].double()).float()
            for name in sorted(mixer)
        }
    return ServerState(mixer, average, first, second)
