"""Rounds that wait for nobody: a server step takes the updates that come first in virtual time."""
