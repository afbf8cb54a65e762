"""What `gadc export` is asked, with its help, and which format takes which option."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from gadc.errors import InputError

LINKS = "Only for folders with a file per image (imagefolder, edm, kohya, fiftyone)"
SHARDS = "Only for hf and wds"
CAPTIONS = "Only for kohya, hf and wds"
ONE_FORMAT = "Only for one format"
LISTS = "Only for lists of paths (paths, reference-json, d2c-scores)"


class Format(StrEnum):
    """What other programs read."""

    IMAGEFOLDER = "imagefolder"
    HF = "hf"
    WDS = "wds"
    EDM = "edm"
    KOHYA = "kohya"
    FIFTYONE = "fiftyone"
    PATHS = "paths"
    REFERENCE_JSON = "reference-json"
    D2C_SCORES = "d2c-scores"
    CSV = "csv"


FILE_PER_IMAGE = frozenset([Format.IMAGEFOLDER, Format.EDM, Format.KOHYA, Format.FIFTYONE])
SHARDED = frozenset([Format.HF, Format.WDS])
CAPTIONED = frozenset([Format.KOHYA, Format.HF, Format.WDS])
FOLDERS = FILE_PER_IMAGE | SHARDED
PATH_LISTS = frozenset([Format.PATHS, Format.REFERENCE_JSON, Format.D2C_SCORES])


class ScoreName(StrEnum):
    """What a score file says of an image."""

    RANK = "rank"
    GAIN = "gain"
    WEIGHT = "weight"


As = Annotated[
    Format,
    typer.Option(
        "--as",
        help="imagefolder: a folder per class; hf: a Hugging Face dataset with its card; wds: "
        "WebDataset shards with an index; edm: images and dataset.json, as EDM and REPA read them; "
        "kohya: folders with repeats and captions; fiftyone: data and labels.json; paths: a list, "
        "one path a line; reference-json: the JSON list that GADC's research code reads; "
        "d2c-scores: a JSON list of scores by path; csv: a table for spreadsheets.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="PATH",
        help="For images a new or empty folder (needed), else a file; without it, lists go to "
        "stdout.",
    ),
]
Source = Annotated[
    Path | None,
    typer.Option(
        "--source",
        metavar="DATA",
        help="Where the images are now, if not where they were selected from.",
    ),
]
First = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Only the first N images of each class in the order of selection; good subsets "
        "themselves where N is one of the sizes of `gadc select --nested`.",
    ),
]
Copy = Annotated[
    bool,
    typer.Option(
        "--copy", metavar="", help="Copy the images; this is the default.", rich_help_panel=LINKS
    ),
]
Hardlink = Annotated[
    bool,
    typer.Option(
        "--hardlink",
        metavar="",
        help="Hard links instead of copies: no space, but the same disk, and an edit changes both.",
        rich_help_panel=LINKS,
    ),
]
Symlink = Annotated[
    bool,
    typer.Option(
        "--symlink",
        metavar="",
        help="Symbolic links instead of copies: no space, but they break when the data moves.",
        rich_help_panel=LINKS,
    ),
]
PerShard = Annotated[
    int | None,
    typer.Option(
        "--per-shard", metavar="N", help="Images in a file [default: 1000].", rich_help_panel=SHARDS
    ),
]
CaptionTemplate = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Captions such as 'a photo of a {class_name}'; {label} and {rank} are known too. "
        "For kohya the class's name is the default.",
        rich_help_panel=CAPTIONS,
    ),
]
CaptionFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Captions from a .csv, .jsonl or .parquet file with a column `path` (or `id`, "
        "`file_name`) as in subset.parquet.",
        rich_help_panel=CAPTIONS,
    ),
]
CaptionColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The column of --caption-file with the captions [default: text].",
        rich_help_panel=CAPTIONS,
    ),
]
Repeats = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="kohya: how often an epoch shows each image [default: 1].",
        rich_help_panel=ONE_FORMAT,
    ),
]
License = Annotated[
    str | None,
    typer.Option(
        "--license",
        metavar="ID",
        help="hf: the licence of the images for the card, such as cc-by-4.0.",
        rich_help_panel=ONE_FORMAT,
    ),
]
Sizes = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...",
        help="reference-json: a list for the first N images of each class, as test_N.json in the "
        "folder --out.",
        rich_help_panel=ONE_FORMAT,
    ),
]
Score = Annotated[
    ScoreName | None,
    typer.Option(
        help="d2c-scores: the order of selection, the fall of the objective, or how many images "
        "each stands for [default: rank].",
        rich_help_panel=ONE_FORMAT,
    ),
]
PathPrefix = Annotated[
    str | None,
    typer.Option(
        "--path-prefix",
        metavar="TEXT",
        help="What to put before each path, with a slash between; '' for nothing. By default "
        "the data folder.",
        rich_help_panel=LISTS,
    ),
]
Null = Annotated[
    bool,
    typer.Option(
        "--null",
        metavar="",
        help="paths: end each with a NUL character, for names with line breaks (`xargs -0`).",
        rich_help_panel=ONE_FORMAT,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of one export; None where an option was not given."""

    form: Format
    out: Path | None
    source: Path | None
    copy: bool
    hardlink: bool
    symlink: bool
    wait_seconds: float
    per_shard: int | None
    caption_template: str | None
    caption_file: Path | None
    caption_column: str | None
    repeats: int | None
    license_id: str | None
    sizes: str | None
    score: ScoreName | None
    path_prefix: str | None
    null: bool

    @property
    def placement(self) -> Literal["copy", "hardlink", "symlink"]:
        """How images come to their place."""
        return "hardlink" if self.hardlink else "symlink" if self.symlink else "copy"

    def check(self, *, as_json: bool) -> None:
        """Refuse options that contradict each other or can't have an effect.

        Raises:
            InputError: `option_conflict`, `option_unused` or `no_output`.
        """
        if self.copy + self.hardlink + self.symlink > 1:
            raise InputError("option_conflict", "give only one of --copy, --hardlink and --symlink")
        if self.caption_template is not None and self.caption_file is not None:
            raise InputError(
                "option_conflict", "give only one of --caption-template and --caption-file"
            )
        self._check_used()
        if self.form in FOLDERS or self.sizes is not None:
            self.folder()
        if as_json and self.out is None:
            raise InputError(
                "option_conflict", "--json needs --out; the list itself goes to stdout"
            )

    def _check_used(self) -> None:
        takers = {
            "--copy, --hardlink and --symlink": (
                self.copy or self.hardlink or self.symlink,
                FILE_PER_IMAGE,
            ),
            "--per-shard": (self.per_shard is not None, SHARDED),
            "--caption-template": (self.caption_template is not None, CAPTIONED),
            "--caption-file": (self.caption_file is not None, CAPTIONED),
            "--repeats": (self.repeats is not None, {Format.KOHYA}),
            "--license": (self.license_id is not None, {Format.HF}),
            "--sizes": (self.sizes is not None, {Format.REFERENCE_JSON}),
            "--score": (self.score is not None, {Format.D2C_SCORES}),
            "--path-prefix": (self.path_prefix is not None, PATH_LISTS),
            "--null": (self.null, {Format.PATHS}),
            "--source": (self.source is not None, FOLDERS | PATH_LISTS),
            "--wait": (self.wait_seconds != 0, FOLDERS),
        }
        for option, (is_given, forms) in takers.items():
            if is_given and self.form not in forms:
                names = " or ".join(form.value for form in Format if form in forms)
                verb = "need" if " and " in option else "needs"
                raise InputError("option_unused", f"{option} {verb} --as {names}")
        if self.source is not None and self.path_prefix is not None:
            raise InputError(
                "option_conflict",
                "give only one of --source and --path-prefix, which both say how paths begin",
            )
        if self.caption_column is not None and self.caption_file is None:
            raise InputError("option_unused", "--caption-column needs --caption-file")

    def folder(self) -> Path:
        """Return --out.

        Raises:
            InputError: `no_output`: it was not given.
        """
        if self.out is None:
            raise InputError("no_output", f"--as {self.form.value} needs --out DIR")
        return self.out

    def size_list(self) -> list[int]:
        """Return --sizes as numbers.

        Raises:
            InputError: `bad_sizes`: they are none.
        """
        try:
            return sorted({int(size) for size in (self.sizes or "").split(",")})
        except ValueError as error:
            raise InputError(
                "bad_sizes", f"--sizes {self.sizes} must be whole numbers, such as 10,50"
            ) from error
