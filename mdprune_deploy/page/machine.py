"""The machine, its clocks and the versions; what a reader should be warned of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .latency import label_of
from .svg import number
from .tables import facts, folded, percent, section, table

UNSTEADY = 0.1
"""A coefficient of variation, or a drift away from 1, that is worth a word."""


def machine(document: dict[str, Any]) -> str:
    """Returns the section."""
    found, clocks = document["machine"], document["clocks"]
    settings = document["settings"]
    runs = sorted({run["rounds"] for run in document["runs"]})
    pairs = [
        ("processor", f"{found['processor']}, {found['cores']} cores"),
        ("instruction sets", ", ".join(found["instruction_sets"]) or "–"),
        ("system", found["system"]),
    ]
    pairs += [
        (key.replace("_", " "), found[key]) for key in ("board", "jetson_linux") if key in found
    ]
    if "gpu" in found:
        pairs.append(("GPU", ", ".join(f"{k} {v}" for k, v in found["gpu"].items())))
    versions = {"python": found["python"], **found["versions"]}
    pairs += [
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("power mode", clocks["before"].get("power_mode", "not told")),
        ("governors", _governors(clocks["before"]) or "not told"),
        ("engines", ", ".join(settings["engines"])),
        ("threads", str(settings["threads"])),
        ("timed calls", f"{' or '.join(map(str, runs))} per domain and engine"),
        ("date", document["date"]),
    ]
    rows = _clock_rows(clocks["before"], clocks["after"])
    more = folded("Clocks and temperatures", table(["", "before", "after"], rows)) if rows else ""
    return section("Machine and versions", facts(pairs), more)


def _governors(clocks: Mapping[str, Any]) -> str:
    found = [
        entry["governor"]
        for group in ("cpu", "devices")
        for entry in clocks.get(group, {}).values()
        if "governor" in entry
    ]
    return ", ".join(dict.fromkeys(found))


def _clock_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[list[str]]:
    old, new = _flat(before), _flat(after)
    return [[name, old.get(name, "–"), new.get(name, "–")] for name in dict.fromkeys([*old, *new])]


def _flat(tree: Mapping[str, Any], place: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{place} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            found |= _flat(value, name)
        else:
            found[name] = number(value) if isinstance(value, float) else str(value)
    return found


def warnings(document: dict[str, Any]) -> list[str]:
    """Returns what makes the figures doubtful, each as a sentence."""
    found = [f"While it ran, {change}." for change in document["clocks"]["changed"]]
    runs = document["runs"]
    for words, unsteady in (
        ("Calls vary by more than a tenth of their mean", [r for r in runs if r["cv"] > UNSTEADY]),
        (
            "Calls became slower or faster on the way",
            [r for r in runs if abs(r["drift"] - 1) > UNSTEADY],
        ),
    ):
        if unsteady:
            worst = max(unsteady, key=lambda run: run["cv"])
            found.append(
                f"{words} in {len(unsteady)} of {len(runs)} rows (worst: {worst['domain']}, "
                f"{label_of(worst)}, CV {percent(worst['cv'])}, drift {worst['drift']:.2f}): "
                "another program, a governor or heat. Ratios suffer less than milliseconds."
            )
    found += list(dict.fromkeys(f"{run['note']}." for run in runs if run["note"]))
    return found
