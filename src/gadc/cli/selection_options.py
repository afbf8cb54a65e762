"""What only `gadc select` is asked, with its help."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gadc.cli import options

HOW_MANY = "How many (give one of --per-class, --fraction, --budget)"
WHICH = "Which may be selected"
OBJECTIVE = "What is minimised (the defaults suit most data)"
SEARCH = "Search"


class Allocate(StrEnum):
    """How a budget is divided among the classes."""

    EQUAL = "equal"
    PROPORTIONAL = "proportional"
    SQRT = "sqrt"
    FILE = "file"


class Shortfall(StrEnum):
    """What happens in a class with fewer images than its share."""

    TAKE_ALL = "take-all"
    REDISTRIBUTE = "redistribute"
    ERROR = "error"


class Dedup(StrEnum):
    """What becomes of exact duplicates."""

    FIRST = "first"
    KEEP = "keep"


class Start(StrEnum):
    """Where the search begins."""

    MEDOIDS = "medoids"
    GREEDY = "greedy"
    BEST = "best"


class Partition(StrEnum):
    """Which classes are searched in cells."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Units(StrEnum):
    """Units of epsilon and of the confidence weight."""

    RELATIVE = "relative"
    ABSOLUTE = "absolute"


PerClass = Annotated[
    int | None,
    typer.Option(metavar="N", help="Select N images of each class.", rich_help_panel=HOW_MANY),
]
Fraction = Annotated[
    float | None,
    typer.Option(
        metavar="FRACTION",
        help="Select this part of all images, above 0 and up to 1.",
        rich_help_panel=HOW_MANY,
    ),
]
Budget = Annotated[
    int | None,
    typer.Option(metavar="N", help="Select N images in all.", rich_help_panel=HOW_MANY),
]
AllocateOption = Annotated[
    Allocate | None,
    typer.Option(
        metavar="HOW",
        help="How --fraction or --budget is divided among the classes: equal (default for "
        "--budget), proportional to their sizes (default for --fraction), sqrt (to the square "
        "roots) or file (as in --allocation-file).",
        rich_help_panel=HOW_MANY,
    ),
]
AllocationFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='JSON file {"class": share}; the very numbers of images if neither --fraction nor '
        "--budget is given.",
        rich_help_panel=HOW_MANY,
    ),
]
ShortfallOption = Annotated[
    Shortfall,
    typer.Option(
        metavar="HOW",
        help="If a class has fewer images than its share: take-all (it gives what it has), "
        "redistribute (others give more instead) or error.",
        rich_help_panel=HOW_MANY,
    ),
]
Clusters = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="For images without classes: divide them into K clusters, which serve as classes.",
        rich_help_panel=HOW_MANY,
    ),
]
Target = Annotated[
    Path | None,
    typer.Option(
        metavar="DATA",
        help="Other images, or features, to look like: select from DATA what matches these. By "
        "default each class is matched to itself.",
        rich_help_panel=WHICH,
    ),
]
Keep = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Images that are selected in any case: a list of ids or paths, one a line, or a "
        "subset.parquet.",
        rich_help_panel=WHICH,
    ),
]
Exclude = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Images that are not selected, listed likewise; they still count in what the "
        "subset is to match.",
        rich_help_panel=WHICH,
    ),
]
DedupOption = Annotated[
    Dedup,
    typer.Option(
        help="Exact duplicates: only the first may be selected, or all may.",
        rich_help_panel=WHICH,
    ),
]
FeaturesFile = Annotated[
    Path | None,
    typer.Option(
        "--features",
        metavar="FILE",
        help="Features of the images in DATA that you computed yourself; rows in the order of "
        "the images, or with ids.",
        rich_help_panel=options.ENCODER,
    ),
]
LabelsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Classes of a file of features that has none: .npy, or text with a class a line.",
        rich_help_panel=options.ENCODER,
    ),
]
StartOption = Annotated[
    Start,
    typer.Option(
        help="Where exchanges begin: from k-medoids, from the greedy set, or from both, the better "
        "end of which is kept. Of tiny classes every subset is tried.",
        rich_help_panel=SEARCH,
    ),
]
MaxSwaps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="At most this many exchanges per class; by default as long as one helps.",
        rich_help_panel=SEARCH,
    ),
]
Patience = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Attempts in a row to find a better subset that may fail (twice as many where more "
        "than 32 images are kept) before the search of a class ends; 0: none is made.",
        rich_help_panel=SEARCH,
    ),
]
Proof = Annotated[
    bool,
    typer.Option(
        "--proof/--no-proof",
        metavar="",
        help="Rule out or solve every exchange at the end of a class. That is most of the work in "
        "large classes; without it the subset is about as good, and not known to be swap-optimal.",
        rich_help_panel=SEARCH,
    ),
]
PartitionOption = Annotated[
    Partition,
    typer.Option(
        help="Search classes in cells of neighbours, without a matrix of all distances: those of "
        "more than 20,000 images (auto), all or none.",
        rich_help_panel=SEARCH,
    ),
]
Nested = Annotated[
    bool | None,
    typer.Option(
        "--nested",
        metavar="",
        help="Also make the first half of each class's images a good subset, and the first half "
        "of that, down to 10: --per-class 100 then holds good subsets of 50, 25 and 12.",
        rich_help_panel=HOW_MANY,
    ),
]
NestedSizes = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...",
        help="Make the first N images of each class a good subset, for these N, such as 10,50.",
        rich_help_panel=HOW_MANY,
    ),
]
Seed = Annotated[
    int,
    typer.Option(metavar="N", help="Of all that is random in the search.", rich_help_panel=SEARCH),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Processes; the result is the same for any number. Where there are half as many "
        "classes or fewer, each has several. Default: one per core, from 10,000 images on for "
        "classes at the same time. With --engine ray: tasks at the same time; default: one per "
        "CPU of the cluster.",
        rich_help_panel=options.ENGINE,
    ),
]
Capacity = Annotated[
    float,
    typer.Option(
        metavar="KAPPA",
        help="How much more than its share an image of the class may draw from the subset; 1 "
        "allows nothing more.",
        rich_help_panel=OBJECTIVE,
    ),
]
Epsilon = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="Smoothing of the transport plan, in units of the class's median squared distance "
        "(see --units).",
        rich_help_panel=OBJECTIVE,
    ),
]
MeanWeight = Annotated[
    float,
    typer.Option(
        metavar="X", help="Weight of the squared gap of the means.", rich_help_panel=OBJECTIVE
    ),
]
StdWeight = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="Weight of the squared gap of the standard deviations.",
        rich_help_panel=OBJECTIVE,
    ),
]
ConfidenceWeight = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Weight of how typical of its class a classifier finds an image, in units of the "
        "median squared distance. By default 0.03, and 0 for images without classes.",
        rich_help_panel=OBJECTIVE,
    ),
]
UnitsOption = Annotated[
    Units,
    typer.Option(
        help="relative: the result does not depend on the scale of the features; absolute: "
        "epsilon and the confidence weight as they are, to repeat published settings.",
        rich_help_panel=OBJECTIVE,
    ),
]
Probe = Annotated[
    bool,
    typer.Option(
        "--probe/--no-probe",
        metavar="",
        help="Fit a classifier to the features if there are classes but no class "
        "probabilities; without it the confidence term is then off.",
        rich_help_panel=OBJECTIVE,
    ),
]
NullPaths = Annotated[
    bool,
    typer.Option(
        "--null",
        metavar="",
        help="End each path in paths.txt with a NUL character instead of a line break.",
        rich_help_panel=options.OUTPUT,
    ),
]
Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Images (a folder with one folder per class, a folder of images, parquet files, "
        "tar shards, a .txt list of paths) or features (a folder that `gadc features` wrote, "
        "or a .safetensors, .npz, .npy or .parquet file).",
    ),
]
