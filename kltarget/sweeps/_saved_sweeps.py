"""Sweeps in files: netCDF or zarr, whole or not at all."""

from __future__ import annotations

import importlib.util
import os
import pathlib
from typing import TYPE_CHECKING

from kltarget._core.files import replacing

if TYPE_CHECKING:
    import xarray


def save(data: xarray.Dataset, path: str | os.PathLike[str]) -> None:
    """Writes a sweep to a netCDF file or a zarr store, which appears whole or not at all.

    NetCDF files are of the classic format with 64-bit offsets, which SciPy writes and every reader
    knows; a variable may have up to 4 GiB.

    Args:
        data: what ``sweep`` returned.
        path: where to: a name that ends in ``.nc`` or ``.zarr``. What is there is replaced.

    Raises:
        ValueError: the name ends otherwise.
        ImportError: a zarr store is asked for and zarr is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> from kltarget import sweeps
        >>> data = sweeps.sweep("one-two", beta=[0.1, 1.0])
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "one-two.nc"
        >>> sweeps.save(data, path)
        >>> sweeps.load(path).identical(data)
        True
    """
    path = pathlib.Path(path)
    kind = _kind(path)
    with replacing(path) as part:
        if kind == ".nc":
            data.to_netcdf(part, engine="scipy", format="NETCDF3_64BIT")
        else:
            # Version 3 of the format has no strings yet.
            data.to_zarr(part, zarr_format=2, consolidated=True)


def load(path: str | os.PathLike[str]) -> xarray.Dataset:
    """Reads a sweep into memory: a netCDF file, a zarr store, or a folder of finished parts.

    Args:
        path: what ``save`` wrote, or the ``folder`` of a ``sweep`` that has come to its end.

    Returns:
        The sweep, identical to what was saved.

    Raises:
        ValueError: the name ends neither in ``.nc`` nor in ``.zarr``, or parts are missing.
        FileNotFoundError: there is nothing.
        ImportError: it is a zarr store and zarr is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> from kltarget import sweeps
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "parts"
        >>> data = sweeps.sweep("one-two", beta=[0.1, 1.0], folder=folder)
        >>> sweeps.load(folder).identical(data)
        True
    """
    import xarray as xr

    from kltarget.sweeps._parts import is_folder_of_parts, load_parts

    path = pathlib.Path(path)
    if is_folder_of_parts(path):
        return load_parts(path)
    if _kind(path) == ".nc":
        return xr.load_dataset(path, engine="scipy")
    with xr.open_zarr(path, chunks=None) as data:
        return data.load()


def _kind(path: pathlib.Path) -> str:
    if path.suffix not in (".nc", ".zarr"):
        raise ValueError(f"{path}: the name must end in .nc or .zarr")
    if path.suffix == ".zarr" and importlib.util.find_spec("zarr") is None:
        raise ImportError("zarr stores need zarr: pip install 'kltarget[zarr]'")
    return path.suffix
