"""A release on the laptop: which tree, under which id, built, described and packed."""

from deploytools.releasing.build import packed
from deploytools.releasing.source import resolve

__all__ = ["packed", "resolve"]
