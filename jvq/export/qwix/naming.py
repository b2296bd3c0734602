"""Names: what a module of ours is called in somebody else's model."""

from collections.abc import Mapping

from jvq.core.errors import nearest

Rename = Mapping[str, str]
"""Our path to theirs, whole modules or a part of the tree: ``{"block00/mlp": "encoder/layers/0/mlp"}``."""


def theirs(path: str, rename: Rename) -> str:
    """Their path for ours: the longest entry of ``rename`` that is ``path`` or stands above it is put in its place."""
    parts = path.split("/")
    for n in range(len(parts), 0, -1):
        head = "/".join(parts[:n])
        if head in rename:
            return "/".join([rename[head], *parts[n:]])
    return path


def check_rename(rename: Rename, paths: list[str]) -> None:
    """Raises ``ValueError`` for an entry that stands above none of our ``paths``."""
    heads = {"/".join(parts[:n]) for parts in (p.split("/") for p in paths) for n in range(1, len(parts) + 1)}
    for ours in rename:
        if ours not in heads:
            raise ValueError(f"qwix: rename: the model has no module '{ours}'{nearest(ours, sorted(heads))}")
