"""Images without labels: CSV files with a path a row, for style transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .csv_rows import Archive, read_rows
from .data import DataContext, Splits
from .images import ImageInputter, scaling_of


def image_splits(
    context: DataContext,
    files: Mapping[str, str],
    image_size: Sequence[int] | None = None,
    channels: int = 3,
    archive: str | None = None,
    batch_size: int = 8,
    threads: int | None = None,
    cache: bool = True,
) -> Splits:
    """Images of CSV files without a header, a path in each row.

    A batch is ``(images,)``, float32 ``(batch, channels, height, width)``, values 0..1.

    Args:
        context: given by Ingot.
        files: by split a CSV, or several with commas between; paths in a CSV are relative to it.
        image_size: height and width that images are scaled to; the size of the first by default.
        channels: 3 for RGB, 1 for grey.
        archive: a zip whose members the paths in the CSVs are; a CSV may be a member, too.
        batch_size: images a batch.
        threads: threads that decode; the free cores by default.
        cache: keep decoded images in memory, up to 2 GiB a split.

    Raises:
        InputError: a row has another form, or names a missing file.
    """
    source = None if archive is None else Archive(context.path(archive))
    return {
        split: ImageInputter(
            read_rows(context.root, names, ("path",), source),
            source=source,
            image_size=image_size,
            channels=channels,
            scaling=scaling_of(channels, 1 / 255, None, None),
            threads=threads,
            cache=cache,
            **context.options(split, batch_size),
        )
        for split, names in files.items()
    }
