"""Who is public, and who is at which site: by person, never by examination."""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lift.csv_tables import TableError, read_table
from lift.errors import ConfigError, DataError
from lift_benchmarks.public.config import Division
from lift_benchmarks.public.folders import Examination

FEWEST: Final = 3
"""Persons of a site: one each to train, to validate and to test."""
FEWEST_PUBLIC: Final = 2
"""Persons in the public part: one to train on, one to validate."""
OTHERS: Final = "others"
"""Persons of sites that are too small to be one."""
_UNNAMED: Final = "unnamed"
_LONGEST: Final = 32


@dataclass(frozen=True)
class Divided:
    """The public part and the sites; no person is in two of them.

    Attributes:
        public: on whom the generator is pre-trained; the federation never sees them.
        sites: site -> its examinations.
        rule: how sites and public part were made, as sentences.
    """

    public: tuple[Examination, ...]
    sites: Mapping[str, tuple[Examination, ...]]
    rule: tuple[str, ...]


def read_mapping(path: Path) -> dict[str, str]:
    """Person or examination -> site, of a CSV table with the columns `patient` and `site`.

    Raises:
        DataError: the table cannot be read, or a row lacks a cell, or a name has two sites.
    """
    try:
        table = read_table(path, ["patient", "site"])
    except TableError as error:
        raise _bad_mapping(path, error.seen, error.remedy) from None
    found: dict[str, str] = {}
    for row in table.rows:
        name, site = row.cells.get("patient", ""), row.cells.get("site", "")
        if not name or not site:
            raise _bad_mapping(path, f"line {row.line} has no patient or no site")
        if found.setdefault(name, site) != site:
            raise _bad_mapping(path, f"line {row.line} gives '{name}' a second site")
    return found


def divide(
    examinations: Sequence[Examination], rule: Division, mapping: Mapping[str, str] | None = None
) -> Divided:
    """Make sites and the public part.

    Sites are those of `mapping`, else the centres that the names tell, else `rule.sites` parts by
    a keyed hash of the person. Sites with fewer than 3 persons are joined into one. The public part
    is the site `rule.public_site`, else a share of every site's persons, by another keyed hash.

    Args:
        examinations: of the benchmark.
        rule: numbers and keys.
        mapping: person or examination -> site.

    Raises:
        DataError: the mapping names nobody here, or gives one person two sites; or too few persons
            are left for a public part and a site.
        ConfigError: there is no site of the name `rule.public_site`.
    """
    sites, told = _sites(examinations, rule, mapping)
    joined = _joined(sites)
    sentences = [told]
    if joined is not sites:
        sentences.append(f"Sites with fewer than {FEWEST} persons are one site, `{OTHERS}`.")
    public, left, how = _public_part(joined, rule)
    sentences.append(how)
    if rule.most_persons is not None:
        left = {site: people[: rule.most_persons] for site, people in left.items()}
        public = public[: rule.most_persons]
        sentences.append(
            f"At most {rule.most_persons} persons of each site and of the public part are used."
        )
    kept = {site: people for site, people in left.items() if len(people) >= FEWEST}
    if not kept or len(public) < FEWEST_PUBLIC:
        seen = ", ".join(f"{site} {len(people)}" for site, people in left.items()) or "no site"
        raise DataError(
            "too few persons for this benchmark",
            where="the data folder",
            seen=f"public part {len(public)}, {seen}; needed are {FEWEST_PUBLIC} persons in the "
            f"public part and one site with {FEWEST}",
            remedy="Unpack more of the download, or ask for fewer sites.",
        )
    if dropped := sorted(set(left) - set(kept)):
        sentences.append(f"Left out, with fewer than {FEWEST} persons: {', '.join(dropped)}.")
    by_person: dict[str, list[Examination]] = {}
    for one in examinations:
        by_person.setdefault(one.person, []).append(one)
    return Divided(
        public=_of(public, by_person),
        sites={site: _of(people, by_person) for site, people in sorted(kept.items())},
        rule=tuple(sentences),
    )


def _sites(
    examinations: Sequence[Examination], rule: Division, mapping: Mapping[str, str] | None
) -> tuple[dict[str, list[str]], str]:
    """Site -> persons in the order of their keyed hash, and how they were made."""
    persons = _ordered({one.person for one in examinations}, rule.key, "order")
    if mapping is not None:
        places: dict[str, set[str]] = {person: set() for person in persons}
        for one in examinations:
            for name in (one.id, one.person):
                if name in mapping:
                    places[one.person].add(mapping[name])
        if torn := [person for person, found in places.items() if len(found) > 1]:
            raise _bad_mapping(None, f"{len(torn)} persons have examinations at two sites")
        if not any(places.values()):
            raise _bad_mapping(None, "it names nobody who is in the data folder")
        unnamed = sum(not found for found in places.values())
        site_of = {person: min(found, default=_UNNAMED) for person, found in places.items()}
        told = "Sites are those of the mapping file."
        if unnamed:
            told += f" It does not name {unnamed} persons: they are the site `{_UNNAMED}`."
        return _grouped(persons, site_of), told
    centres = {one.person: one.centre for one in examinations}
    if all(centres.values()):
        told = "Sites are the contributing centres, as the names of the patients tell them."
        return _grouped(persons, centres), told
    parts = {person: str(1 + place % rule.sites) for place, person in enumerate(persons)}
    told = (
        f"The folder does not tell who contributed a patient: the {rule.sites} sites are made by a "
        "keyed hash of the person, so that they differ by chance alone. With a mapping file "
        "(SITES=mapping.csv) they are the real ones."
    )
    return _grouped(persons, parts), told


def _grouped(persons: Sequence[str], site_of: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for person in persons:
        found.setdefault(_site_name(site_of[person]), []).append(person)
    return dict(sorted(found.items()))


def _site_name(told: str) -> str:
    """A name that settings allow: `A` is `site-A`."""
    clean = re.sub("[^A-Za-z0-9_-]+", "-", told).strip("-_") or _UNNAMED
    short = len(clean) <= 3
    return (f"site-{clean}" if short else clean)[:_LONGEST]


def _joined(sites: dict[str, list[str]]) -> dict[str, list[str]]:
    small = [site for site, people in sites.items() if len(people) < FEWEST]
    if len(small) < 2:
        return sites
    kept = {site: people for site, people in sites.items() if site not in small}
    together = [person for site in small for person in sites[site]]
    return {**kept, OTHERS: sorted([*kept.get(OTHERS, []), *together])}


def _public_part(
    sites: Mapping[str, list[str]], rule: Division
) -> tuple[list[str], dict[str, list[str]], str]:
    if rule.public_site is not None:
        name = _site_name(rule.public_site)
        if name not in sites:
            raise ConfigError(
                "there is no such site",
                where="public_site",
                seen=f"'{name}'; there are {', '.join(sites)}",
                remedy="Name one of these, or leave it out: then it is a share of every site.",
            )
        left = {site: people for site, people in sites.items() if site != name}
        return list(sites[name]), left, f"The public part is the whole site `{name}`."
    public, left = [], {}
    for site, people in sites.items():
        order = _ordered(people, rule.key, "public")
        count = max(1, round(rule.public_share * len(people)))
        public += order[:count]
        chosen = set(order[:count])
        left[site] = [person for person in people if person not in chosen]
    told = (
        f"The public part is {rule.public_share:.0%} of each site's persons, by a keyed hash: the "
        "generator has seen other patients of the same scanners."
    )
    return _ordered(public, rule.key, "public"), left, told


def _ordered(persons: Iterable[str], key: str, purpose: str) -> list[str]:
    secret = f"{key} {purpose}".encode()
    ranks = {one: hmac.digest(secret, one.encode(), hashlib.sha256) for one in set(persons)}
    return sorted(ranks, key=lambda one: (ranks[one], one))


def _of(
    persons: Collection[str], by_person: Mapping[str, list[Examination]]
) -> tuple[Examination, ...]:
    return tuple(sorted((e for one in persons for e in by_person[one]), key=lambda e: e.id))


def table_text(examinations: Iterable[Examination], root: Path, channels: Sequence[str]) -> str:
    """The CSV table that `layout: table` reads: examination, person, files below `root`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["patient", "subject", *channels, "mask"])
    for one in examinations:
        files = [one.channels[channel] for channel in channels]
        cells = [path.relative_to(root).as_posix() for path in files]
        mask = "" if one.mask is None else one.mask.relative_to(root).as_posix()
        table.writerow([one.id, one.person, *cells, mask])
    return text.getvalue()


def _bad_mapping(path: Path | None, seen: str, remedy: str = "") -> DataError:
    return DataError(
        "cannot use the mapping of patients to sites",
        where="--sites" if path is None else str(path),
        seen=seen,
        remedy=remedy
        or "Give a CSV table with the columns `patient` (BraTS-GLI-00000 or BraTS-GLI-00000-000) "
        "and `site`.",
    )
