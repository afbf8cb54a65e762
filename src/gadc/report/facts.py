"""A run's record in words: the numbers that come first, warnings, tables."""

import json
from typing import Any

from gadc.report.geometry import ClassGeometry
from gadc.report.thumbnails import Thumbnails

LARGE_GAP = 0.05
"""Share of the transport cost by which it may lie above its exact value before it is remarked."""
MAX_RECORD_CHARACTERS = 400_000
N_FAULTS_NAMED = 3
CONFIDENCE = {
    "given": "class probabilities of the encoder, or of the file of features",
    "probe": "class probabilities of a linear classifier fitted to the features",
}


def kind_of_classes(record: dict[str, Any]) -> str:
    """Return what the parts of the data are called, with their number."""
    n_classes = len(record["classes"])
    if record["division"] == "clusters":
        return f"{n_classes:,} clusters"
    return f"{n_classes:,} classes" if n_classes > 1 else "one class"


def encoder_name(record: dict[str, Any]) -> str:
    """Return what turned the images into features; nothing if only their owner knows."""
    encoder = record["pool"]["features"].get("encoder")
    return str(encoder["name"]) if isinstance(encoder, dict) else ""


def headline_numbers(record: dict[str, Any]) -> list[dict[str, str]]:
    """Return the numbers of the first screen: value, what it is, what it means."""
    classes = [entry for entry in record["classes"] if entry["n_selected"]]
    n_selected, n_images = record["n_selected"], record["n_images"]
    numbers = [
        {
            "value": f"{n_selected:,}",
            "of": f"of {n_images:,}",
            "name": "images chosen",
            "meaning": f"{n_selected / max(1, n_images):.2%} of the pool, from "
            f"{kind_of_classes(record)}.",
        }
    ]
    if not classes:
        return numbers
    objective = sum(entry["objective"] / entry["scale"] for entry in classes) / len(classes)
    transport = sum(entry["terms"]["transport"] / entry["scale"] for entry in classes)
    gap = sum(entry["transport_gap"] / entry["scale"] for entry in classes)
    share = gap / transport if transport > 0 else 0.0
    n_optimal = sum(bool(entry["is_swap_optimal"]) for entry in classes)
    is_proven = record["config"]["proof"] or n_optimal > 0
    is_in_cells = any(entry["start"] == "partition" for entry in classes)
    return [
        *numbers,
        {
            "value": f"{objective:.3f}",
            "of": "",
            "name": "distance to the whole",
            "meaning": "The objective, mean of the classes, in units of a class's median squared "
            "distance. Lower is better.",
        },
        {
            "value": f"{max(0.0, share):.1%}",
            "of": "at most",
            "name": "above exact transport",
            "meaning": "Proven by a lower bound: the transport cost of this subset is no further "
            "above its exact value.",
        },
        {
            "value": f"{n_optimal:,}" if is_proven else "–",
            "of": f"of {len(classes):,}",
            "name": "classes at an optimum" if is_proven else "optimum not proven",
            "meaning": _meaning_of_optimum(record, is_in_cells=is_in_cells),
        },
    ]


def _meaning_of_optimum(record: dict[str, Any], *, is_in_cells: bool) -> str:
    if is_in_cells:
        return "Large classes were searched in cells, where exchanges are tried in each part only."
    if not record["config"]["proof"]:
        return "The proof was left out (--no-proof): the others may be optimal too."
    return "Exchanging any one chosen image for any other would not improve the objective."


def warnings_of(
    record: dict[str, Any], remarks: list[str], thumbnails: Thumbnails | None, n_shown: int
) -> list[str]:
    """Return what a reader may not expect, the gravest first."""
    classes = [entry for entry in record["classes"] if entry["n_selected"]]
    found = []
    if diverged := [entry["class_name"] for entry in classes if not entry["has_converged"]]:
        found.append(
            f"The solver stopped short of its tolerance for {_examples(diverged)}; of the mass, at "
            f"most {max(map(_row_error, classes)):.1e} is misplaced. A larger --epsilon helps."
        )
    n_short = sum(entry["n_short"] for entry in record["classes"])
    if n_short:
        found.append(f"{n_short:,} fewer images than asked for: classes are too small.")
    if record["n_quarantined"]:
        codes = ", ".join(
            f"{count:,} {code}" for code, count in record["quarantined_by_code"].items()
        )
        found.append(f"{record['n_quarantined']:,} bad images were set aside ({codes}).")
    if record["n_copies"]:
        found.append(f"{record['n_copies']:,} exact copies could not be chosen.")
    if n_conflicts := len(record["label_conflicts"]):
        found.append(f"{n_conflicts:,} images are in several classes; listed in run.json.")
    loose = [entry["class_name"] for entry in classes if _relative_gap(entry) > LARGE_GAP]
    if loose:
        found.append(
            f"The transport cost is only known to within {LARGE_GAP:.0%} for {_examples(loose)}: "
            "lower --epsilon for a tighter bound."
        )
    found += remarks
    if thumbnails is not None and thumbnails.faults:
        named = [f"{name} ({why})" for name, why in thumbnails.faults.items()]
        found.append(f"{len(named):,} images can't be shown: {_examples(named)}.")
    if thumbnails is not None and thumbnails.n_left_out:
        found.append(
            f"{thumbnails.n_left_out:,} images are here by name alone, which keeps this file small."
        )
    if n_shown < record["n_selected"]:
        found.append(
            f"{n_shown:,} of the {record['n_selected']:,} chosen images are shown, the first of "
            "each class; subset.parquet has all."
        )
    return found


def _row_error(entry: dict[str, Any]) -> float:
    return float(entry["terms"]["transport_row_error"])


def _relative_gap(entry: dict[str, Any]) -> float:
    transport = entry["terms"]["transport"]
    return float(entry["transport_gap"] / transport) if transport > 0 else 0.0


def _examples(names: list[str]) -> str:
    more = f" and {len(names) - N_FAULTS_NAMED:,} more" if len(names) > N_FAULTS_NAMED else ""
    return ", ".join(names[:N_FAULTS_NAMED]) + more


def quality_rows(
    record: dict[str, Any], geometry: dict[int, ClassGeometry]
) -> list[dict[str, Any]]:
    """Return the table of classes; values in units of the class's median squared distance."""
    rows = []
    for entry in record["classes"]:
        row: dict[str, Any] = {
            "name": entry["class_name"],
            "n_images": entry["n_images"],
            "n_selected": entry["n_selected"],
            "values": [None] * 5,
            "optimal": "",
            "unmatched": None,
            "distance": None,
        }
        if entry["n_selected"]:
            scale, terms = entry["scale"] or 1.0, entry["terms"]
            row["values"] = [
                entry["objective"] / scale,
                terms["transport"] / scale,
                terms["mean"] / scale,
                terms["std"] / scale,
                terms["confidence"],
            ]
            row["gap"] = _relative_gap(entry)
            row["optimal"] = _optimal(entry, has_proof=record["config"]["proof"])
        seen = geometry.get(entry["label"])
        if seen is not None:
            row["distance"] = float(seen.distance.mean())
            if seen.unused is not None:
                row["unmatched"] = float(seen.is_unmatched.mean())
        rows.append({"gap": None, **row})
    return rows


def _optimal(entry: dict[str, Any], *, has_proof: bool) -> str:
    if entry["start"] == "partition":
        return "in cells"
    return "yes" if entry["is_swap_optimal"] else "no" if has_proof else "not proven"


def configuration(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return every setting of the run by name."""
    pool = record["pool"]["features"]
    encoder = pool.get("encoder")
    settings = [("data", record["data"])]
    if isinstance(encoder, dict):
        settings += [(f"encoder.{name}", _text(value)) for name, value in encoder.items()]
    settings += [(name, _text(value)) for name, value in record["config"].items()]
    settings += [
        ("confidence", CONFIDENCE.get(record["confidence"], str(record["confidence"]))),
        ("device", record["device"]),
        ("kept by the user", str(record["n_kept"])),
        ("excluded by the user", str(record["n_barred"])),
    ]
    settings += [(f"version of {name}", text) for name, text in record["versions"].items()]
    settings += [(name, _text(value)) for name, value in record["times"].items()]
    return settings


def digests(record: dict[str, Any], provenance: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the SHA-256 of everything that went in and came out."""
    found = [
        ("data set (ids, images, labels)", record["pool"]["dataset_sha256"]),
        ("features", record["pool"]["features_sha256"]),
        ("configuration", record["config_sha256"]),
        ("columns of the subset", provenance["columns_sha256"]),
    ]
    if record["target"] is not None:
        found.append(("target data set", record["target"]["dataset_sha256"]))
    return [*found, *record["files"].items()]


def record_text(record: dict[str, Any]) -> str:
    """Return `run.json` as it is, without the records of classes if these are very many."""
    text = json.dumps(record, indent=2, sort_keys=True)
    if len(text) <= MAX_RECORD_CHARACTERS:
        return text
    n_classes = len(record["classes"])
    shorter = {**record, "classes": f"{n_classes} records, in run.json", "class_seconds": "..."}
    return json.dumps(shorter, indent=2, sort_keys=True)[:MAX_RECORD_CHARACTERS]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
