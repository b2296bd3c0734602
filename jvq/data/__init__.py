"""Labelled images: sources, the preprocessing that a checkpoint expects, and batches."""

from jvq.data.crops import CropPolicy
from jvq.data.folder import ImageFolder
from jvq.data.loader import Batch, Loader, Sample, batches, sample, train_batches
from jvq.data.photos import Photos
from jvq.data.records import CorruptImage, InMemory, Record, Records, Source
from jvq.data.soft_labels import CropBatch, SoftLabels, crop_batches
from jvq.data.sources import Fashion, Npz, Tfds, open_source
from jvq.data.transforms import Preprocess

__all__ = [
    "Batch",
    "CorruptImage",
    "CropBatch",
    "CropPolicy",
    "Fashion",
    "ImageFolder",
    "InMemory",
    "Loader",
    "Npz",
    "Photos",
    "Preprocess",
    "Record",
    "Records",
    "Sample",
    "SoftLabels",
    "Source",
    "Tfds",
    "batches",
    "crop_batches",
    "open_source",
    "sample",
    "train_batches",
]
