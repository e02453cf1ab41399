"""The attention reference that kernel authors trust."""

from refattn._version import __version__ as __version__
