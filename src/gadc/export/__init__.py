"""A subset in the forms that other programs read; each format is a file of its own."""

from gadc.export.captions import class_captions, file_captions
from gadc.export.csv_table import csv_text
from gadc.export.edm import export_edm
from gadc.export.fiftyone import export_fiftyone
from gadc.export.folder import METADATA_NAME, PLAN_NAME, FolderExport, Placement
from gadc.export.huggingface import export_huggingface
from gadc.export.imagefolder import export_imagefolder
from gadc.export.kohya import export_kohya
from gadc.export.paths import listed_paths, paths_text
from gadc.export.reference_json import export_reference_json, reference_json
from gadc.export.score_file import Score, score_json
from gadc.export.webdataset import export_webdataset

__all__ = [
    "METADATA_NAME",
    "PLAN_NAME",
    "FolderExport",
    "Placement",
    "Score",
    "class_captions",
    "csv_text",
    "export_edm",
    "export_fiftyone",
    "export_huggingface",
    "export_imagefolder",
    "export_kohya",
    "export_reference_json",
    "export_webdataset",
    "file_captions",
    "listed_paths",
    "paths_text",
    "reference_json",
    "score_json",
]
