"""Follows a repository in a directory with python-tuf's client and downloads one target.

Usage: python_tuf.py REPOSITORY STATE DOWNLOADS TARGET
Prints the versions that are trusted then, as JSON, and writes the target to DOWNLOADS/target.
"""

import json
import os
import sys

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

BASE = "http://repository/"


class Directory(FetcherInterface):
    """Reads what a web server would serve."""

    def __init__(self, path):
        self.path = path

    def _fetch(self, url):
        assert url.startswith(BASE), url
        try:
            with open(os.path.join(self.path, url.removeprefix(BASE)), "rb") as file:
                yield file.read()
        except FileNotFoundError:
            raise DownloadHTTPError("not found", 404) from None


def main():
    repository, state, downloads, name = sys.argv[1:]
    updater = Updater(
        metadata_dir=state,
        metadata_base_url=BASE + "metadata/",
        target_base_url=BASE,
        target_dir=downloads,
        fetcher=Directory(repository),
        config=UpdaterConfig(),
        # The root that lies in STATE.
        bootstrap=None,
    )
    updater.refresh()
    info = updater.get_targetinfo(name)
    assert info is not None, f"no {name}"
    updater.download_target(info, os.path.join(downloads, "target"))
    versions = {}
    for role in ("root", "timestamp", "snapshot", "targets"):
        with open(os.path.join(state, f"{role}.json"), "rb") as file:
            versions[role] = json.load(file)["signed"]["version"]
    print(json.dumps(versions))


main()
