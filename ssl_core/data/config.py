"""A user's description of a dataset: its source, and how it is packed. No torch is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from ssl_core.errors import ConfigError, nearest

Source = Literal["digits", "npz", "folder", "manifest", "cxr14", "eyepacs", "idc", "medmnist"]

#: Settings that only some sources have.
OWN_KEYS: Mapping[str, tuple[str, ...]] = {
    "images_key": ("npz",),
    "labels_key": ("npz",),
    "split_key": ("npz",),
    "group_key": ("npz",),
    "ids_key": ("npz",),
    "class_names_key": ("npz",),
    "path_column": ("manifest",),
    "label_columns": ("manifest",),
    "group_column": ("manifest",),
    "split_column": ("manifest",),
    "lists": ("cxr14", "idc"),
    "flag": ("medmnist",),
}

#: Findings of the audit that stop a study unless `accept` names them.
ACCEPTABLE = (
    "groups_across_splits",
    "duplicates_across_splits",
    "near_duplicates_across_splits",
    "unreadable_images",
)


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """A source of images, and how it is packed. The keys and the split settings have the defaults most data needs."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    source: Source
    name: str | None = None  # the source's word where not given
    path: str | None = None  # npz, medmnist: the file; manifest: the CSV; else the folder
    size: int | None = None  # side in pixels that images are resized to (bilinear); null: as stored, all alike
    crop: int | None = None  # side in pixels of the middle that is kept after resizing; null: all of it
    channels: Literal[1, 3] | None = None  # grey or RGB; null: the source's own, grey where all its images are
    # what becomes black and white in pixels of more than 8 bits (a DICOM file's own window comes first): each image's
    # least and greatest value, the format's range, or two numbers
    intensity: Literal["image", "full"] | tuple[float, float] = "image"
    images_key: str = "images"  # npz: [N, H, W] or [N, H, W, C] uint8
    labels_key: str = "labels"  # npz: [N] classes, or [N, L] zeros and ones
    split_key: str | None = None  # npz: train, val, test or 0, 1, 2; null: `split` if it is there, else made
    group_key: str | None = None  # npz: the patient; null: `group` if it is there, else each image for itself
    ids_key: str | None = None  # npz: null: `ids` if it is there, else row numbers
    class_names_key: str | None = None  # npz: null: `class_names` if it is there, else numbers
    path_column: str = "path"  # manifest: image files, relative to the CSV's folder
    label_columns: tuple[str, ...] = ("label",)  # manifest: one column of classes, or several of zeros and ones
    group_column: str | None = None  # manifest: null: `group` if it is there, else each image for itself
    split_column: str | None = None  # manifest: null: `split` if it is there, else made
    lists: str | None = None  # cxr14, idc: folder of published split lists, which then decide; null: the official split
    flag: str | None = None  # medmnist: the dataset's word, e.g. pneumoniamnist, to take it from the medmnist package
    validation: float = 0.15  # share of the images that validate, where no validation split is given
    test: float = 0.15  # share of the images that test, where no test split is given
    split_seed: int = 0
    accept: tuple[str, ...] = ()  # findings of the audit that do not stop the study; the report names them

    def __post_init__(self) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        for key, sources in OWN_KEYS.items():
            if getattr(self, key) != defaults[key] and self.source not in sources:
                raise ConfigError(
                    f"dataset.{key} is a setting of {' and '.join(sources)}; leave it out for {self.source}"
                )
        if self.source == "digits" and self.path is not None:
            raise ConfigError(f"dataset.path {self.path}: digits lie inside scikit-learn; leave path out")
        if self.source != "digits" and self.path is None and self.flag is None:
            what = {"npz": ".npz file", "medmnist": ".npz file", "manifest": "CSV file"}.get(self.source, "folder")
            raise ConfigError(f"dataset.path is missing: name the {what}")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"dataset.size {self.size} must be at least 1 pixel")
        if self.crop is not None and not 1 <= self.crop <= (self.size or self.crop):
            raise ConfigError(f"dataset.crop {self.crop} must lie in [1, {self.size}], the images' size")
        if isinstance(self.intensity, tuple) and not self.intensity[0] < self.intensity[1]:
            raise ConfigError(f"dataset.intensity {list(self.intensity)} must be [black, white], the lower first")
        if not self.label_columns:
            raise ConfigError("dataset.label_columns: name at least one")
        if not (0 < self.validation < 1 and 0 < self.test < 1 and self.validation + self.test < 1):
            raise ConfigError(
                f"dataset.validation {self.validation} and dataset.test {self.test} must each lie above 0 and together "
                "below 1"
            )
        if self.split_seed < 0:
            raise ConfigError(f"dataset.split_seed {self.split_seed} must not be negative")
        for finding in self.accept:
            if finding not in ACCEPTABLE:
                raise ConfigError(f"dataset.accept: the audit has no finding {finding!r}{nearest(finding, ACCEPTABLE)}")
